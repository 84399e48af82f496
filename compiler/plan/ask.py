"""What is to be planned: a model and the requests that it shall serve."""

from __future__ import annotations

from dataclasses import dataclass

from mm2c.config import PAGE, KvDtype, Mapping, ModelConfig, WeightFormats
from mm2c.plan.step import ceil_div

ROWS = 8  # requests decoded together where none were asked for: the default of a build
CHUNK = 512  # tokens of a prefill step, likewise


@dataclass(frozen=True)
class Ask:
    """``formats``: of the weights as they will be served; ``batch``: requests decoded together over all GPUs, 0
    where nobody said; ``context``: tokens that each may hold; ``chunk``: tokens of a prefill step."""

    config: ModelConfig
    formats: WeightFormats
    context: int
    batch: int = 0
    chunk: int = CHUNK
    kv_dtype: KvDtype = "bf16"

    def rows(self, mapping: Mapping) -> int:
        """Rows of each attention group: the batch is spread over the groups."""
        return ceil_div(self.batch or ROWS, mapping.dp)

    @property
    def row_tokens(self) -> int:
        """Tokens of cache of a full row: whole pages."""
        return ceil_div(self.context, PAGE) * PAGE

    def required_tokens(self, mapping: Mapping) -> int:
        """Tokens of cache without which a group cannot do what was asked: every row full where a batch was asked
        for, else one."""
        return (self.rows(mapping) if self.batch else 1) * self.row_tokens
