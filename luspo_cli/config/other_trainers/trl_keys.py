"""The keys of TRL 1.16's `GRPOConfig` and of what else a file for its GRPO script holds, as data.

A test marked `trl` compares names and values with the class itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

LOSS_KEYS: Mapping[str, Any] = MappingProxyType(
    {
        "loss_type": "dapo",
        "importance_sampling_level": "token",
        "scale_rewards": "group",
        "epsilon": 0.2,
        "epsilon_high": None,
        "delta": None,
        "beta": 0.0,
        "use_bias_correction_kl": True,
        "sync_ref_model": False,
        "entropy_coef": 0.0,
        "use_adaptive_entropy": False,
        "top_entropy_quantile": 1.0,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "mask_truncated_completions": False,
        "off_policy_mask_threshold": None,
        "multi_objective_aggregation": "sum_then_normalize",
        "router_aux_loss_coef": None,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_max": 3.0,
        "vllm_importance_sampling_clip_min": None,
        "vllm_importance_sampling_cap": None,
        "num_generations": 8,
        "max_completion_length": 512,
        "num_iterations": 1,
        "steps_per_generation": None,
        "generation_batch_size": None,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "temperature": 1.0,
        "max_grad_norm": 1.0,
        "learning_rate": 1e-6,
    }
)
"""What the loss and its counts depend on, with TRL's own values."""

FLOATS = (
    "delta", "epsilon_high", "off_policy_mask_threshold", "router_aux_loss_coef", "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_cap",
)  # fmt: skip
WHOLE = ("steps_per_generation", "generation_batch_size")
"""Numbers, whole ones in the second, whose own value is None."""

OTHER_KEYS = frozenset(
    re.findall(
        r"\w+",
        """
    accelerator_config adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size average_tokens_across_devices batch_eval_metrics
    bf16 bf16_full_eval cache_implementation cast_lm_head_to_fp32 chat_template_kwargs data_seed dataloader_drop_last
    dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
    dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb
    ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_dropout disable_tqdm do_eval do_predict
    do_train ds3_gather_for_generation enable_jit_checkpoint entropy_coef_delta entropy_coef_max entropy_coef_min
    entropy_target eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start eval_steps eval_strategy
    eval_use_gather_object fp16 fp16_full_eval fsdp fsdp_config full_determinism generation_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs greater_is_better hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy
    hub_token ignore_data_skip include_for_metrics include_num_input_tokens_seen label_names label_smoothing_factor
    length_column_name liger_kernel_config load_best_model_at_end local_rank log_completions log_completions_hub_repo
    log_level log_level_replica log_multimodal log_on_each_node log_unique_prompts logging_first_step logging_nan_inf_filter
    logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type max_steps max_tool_calling_iterations
    metric_for_best_model min_p model_init_kwargs neftune_noise_alpha num_completions_to_print num_generations_eval
    num_train_epochs optim optim_args optim_target_modules output_dir pad_to_multiple_of parallelism_config
    per_device_eval_batch_size prediction_loss_only project push_to_hub ref_model_mixup_alpha ref_model_sync_steps
    remove_unused_columns repetition_penalty report_to restore_callback_states_from_checkpoint resume_from_checkpoint
    reward_weights run_name save_on_each_node save_only_model save_steps save_strategy save_total_limit seed shuffle_dataset
    skip_memory_metrics tf32 top_k top_p torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
    trackio_bucket_id trackio_space_id trackio_static_space_id train_sampling_strategy transformers_continuous_batching_config
    trust_remote_code use_cache use_cpu use_liger_kernel use_transformers_continuous_batching use_transformers_paged
    vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_group_port vllm_max_model_length vllm_mode vllm_model_impl
    vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_structured_outputs_regex
    vllm_tensor_parallel_size warmup_steps weight_decay
    """,
    )
)
"""The other keys of `GRPOConfig`: none of them is in the equation."""

SCRIPT_KEYS = frozenset(
    re.findall(
        r"\w+",
        """
    attn_implementation bnb_4bit_quant_storage bnb_4bit_quant_type dtype load_in_4bit load_in_8bit lora_alpha lora_dropout
    lora_modules_to_save lora_r lora_target_modules lora_target_parameters lora_task_type model_name_or_path model_revision
    use_bnb_nested_quant use_dora use_peft use_rslora
    dataset_config dataset_name dataset_streaming dataset_test_split dataset_train_split ignore_bias_buffers reward_funcs
    reward_model_name_or_path datasets streaming test_split_size env
    """,
    )
)
"""Of its script's model, data and rewards, which stand in the same file."""
