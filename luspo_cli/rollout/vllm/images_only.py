"""vLLM's vision models where torchvision is missing: the same models, whose processor reads images through Pillow.

vLLM's own classes load transformers' processors of images and videos, which need torchvision. What we sample from comes with
pixels that are ready (`images`), so a processor is only asked how many tokens an image can have. Where torchvision is installed
vLLM's own classes run, and this is never imported.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

from transformers import AutoTokenizer
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as pillow

_OF_TORCHVISION = ModuleType("transformers.models.qwen2_vl.image_processing_qwen2_vl")
"""In the place of the module that vLLM takes `smart_resize` from, and which cannot be imported."""
_OF_TORCHVISION.smart_resize = pillow.smart_resize  # type: ignore[attr-defined]
_OF_TORCHVISION.Qwen2VLImageProcessor = pillow.Qwen2VLImageProcessorPil  # type: ignore[attr-defined]
sys.modules.setdefault(_OF_TORCHVISION.__name__, _OF_TORCHVISION)

from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl  # noqa: E402
from vllm.multimodal import MULTIMODAL_REGISTRY  # noqa: E402

from luspo_cli.policy.reading import image_processor, vision_processor  # noqa: E402


@cache
def _processor(kind: str, source: str, revision: str, **options: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    return vision_processor(kind, image_processor(source, revision, **options), tokenizer)


class _ImagesOnly:
    """What a model's processor says to vLLM, without videos."""

    ctx: Any

    def get_hf_processor(self, **options: object) -> Any:
        model = self.ctx.model_config
        merged = model.get_multimodal_config().merge_mm_processor_kwargs(options)
        return _processor(model.hf_config.model_type, model.model, model.revision or "main", **merged)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}


class _Info(_ImagesOnly, qwen2_vl.Qwen2VLProcessingInfo):
    """Of Qwen2-VL."""


class _Info2_5(_ImagesOnly, qwen2_5_vl.Qwen2_5_VLProcessingInfo):
    """Of Qwen2.5-VL."""


class _Info3(_ImagesOnly, qwen3_vl.Qwen3VLProcessingInfo):
    """Of Qwen3-VL, whose own answers here ask a video processor."""

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return super(qwen3_vl.Qwen3VLProcessingInfo, self).get_supported_mm_processor_kwargs()

    def get_max_video_tokens(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        return 0


@MULTIMODAL_REGISTRY.register_processor(
    qwen2_vl.Qwen2VLMultiModalProcessor, info=_Info, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder
)
class Qwen2VL(qwen2_vl.Qwen2VLForConditionalGeneration):
    """Reads no videos."""


@MULTIMODAL_REGISTRY.register_processor(
    qwen2_5_vl.Qwen2_5_VLMultiModalProcessor, info=_Info2_5, dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder
)
class Qwen2_5VL(qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    """Reads no videos."""


# Its own made-up inputs ask for a video's; those of Qwen2-VL have images of the same kind.
@MULTIMODAL_REGISTRY.register_processor(
    qwen3_vl.Qwen3VLMultiModalProcessor, info=_Info3, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder
)
class Qwen3VL(qwen3_vl.Qwen3VLForConditionalGeneration):
    """Reads no videos."""
