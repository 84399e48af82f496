"""Several generations of one request, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from mm2c_runtime.openai.triton import Part

Generation = AsyncGenerator[Part]
_AHEAD = 64  # parts that may wait for a slow reader


async def side_by_side(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Part]]:
    """Parts as they come, each with the index of its generation.

    The first failure is raised and ends the others; closing this generator ends them all.
    """
    if len(generations) == 1:
        async with aclosing(generations[0]) as parts:
            async for part in parts:
                yield 0, part
        return
    ready: asyncio.Queue[tuple[int, Part | Exception | None]] = asyncio.Queue(_AHEAD)

    async def read(index: int, generation: Generation) -> None:
        end: Exception | None = None
        try:
            async with aclosing(generation) as parts:
                async for part in parts:
                    await ready.put((index, part))
        except Exception as error:  # raised where the parts are read
            end = error
        await ready.put((index, end))

    readers = [asyncio.create_task(read(i, generation)) for i, generation in enumerate(generations)]
    left = len(readers)
    try:
        while left:
            index, came = await ready.get()
            if isinstance(came, Exception):
                raise came
            if came is None:
                left -= 1
            else:
                yield index, came
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
