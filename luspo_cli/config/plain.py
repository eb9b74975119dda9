"""A configuration section without pydantic: a frozen dataclass that a host without our other dependencies can import.

In a configuration file it is checked like any other section: what pydantic has to know stands here as plain data.
"""

from __future__ import annotations

from typing import Any, ClassVar


class PlainSection:
    """Base of a frozen dataclass that is a section of the configuration."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        # pydantic's strict mode takes only instances of a dataclass, not tables; a configuration file holds tables. So
        # the class itself accepts both while its fields stay strict. Schemas are plain dicts: nothing to import.
        schema = handler(source)
        schema["strict"] = False
        return schema
