"""What stands in for models, samplers, servers and runs in the tests: small, made on the spot, without a network."""
