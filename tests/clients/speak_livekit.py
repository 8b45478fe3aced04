"""LiveKit's plugin for OpenAI, as an agent uses it. Prints the seconds that it hears and the tokens that it counts."""

from __future__ import annotations

import asyncio
import json
import sys

from livekit.agents.utils import http_context
from livekit.plugins import openai


async def main(url: str, key: str, text: str) -> None:
    async with http_context.open():
        speaker = openai.TTS(base_url=url, api_key=key)
        speaker.prewarm()
        seconds = 0.0
        async with speaker.synthesize(text) as stream:
            async for one in stream:
                seconds += one.frame.duration
        await speaker.aclose()
    print(json.dumps({"seconds": seconds}))


asyncio.run(main(*sys.argv[1:]))
