"""What is to be planned: a model and the requests that it shall serve."""

from __future__ import annotations

from dataclasses import dataclass

from mm2c.config import PAGE, Engine, KvDtype, Mapping, ModelConfig, WeightFormats
from mm2c.plan.step import ceil_div
from mm2c.request import LINEAR_CONTEXT

ROWS = 8  # requests decoded together where none were asked for: the default of a build
CHUNK = 512  # tokens of a prefill step, likewise


@dataclass(frozen=True)
class Ask:
    """``formats``: of the weights as they will be served; ``batch``: requests decoded together over all GPUs, 0
    where nobody said; ``context``: tokens that each may hold; ``chunk``: tokens of a prefill step; ``engine``: what
    will serve them."""

    config: ModelConfig
    formats: WeightFormats
    context: int
    batch: int = 0
    chunk: int = CHUNK
    kv_dtype: KvDtype = "bf16"
    engine: Engine = "cuda"

    def rows(self, mapping: Mapping) -> int:
        """Rows of each attention group: the batch is spread over the groups."""
        return ceil_div(self.batch or ROWS, mapping.dp)

    @property
    def page(self) -> int:
        """Tokens of a page of the cache; 1 where it has a row of the whole context for each request instead."""
        return 1 if self.linear else PAGE

    @property
    def linear(self) -> bool:
        """Whether every row's cache is there from the start, however many tokens it holds."""
        return self.engine == "tensorrt-rtx"

    @property
    def row_tokens(self) -> int:
        """Tokens of cache of a full row: whole pages."""
        return ceil_div(self.context, self.page) * self.page

    def required_tokens(self, mapping: Mapping) -> int:
        """Tokens of cache without which a group cannot do what was asked: every row full where a batch was asked
        for or rows are there from the start, else one."""
        return (self.rows(mapping) if self.batch or self.linear else 1) * self.row_tokens


def default_context(config: ModelConfig, engine: Engine) -> int:
    """Tokens that a request may hold where nobody said, as in a build: of pages only those in use cost memory."""
    return min(config.context, LINEAR_CONTEXT) if engine == "tensorrt-rtx" else config.context
