"""Pipecat's service for OpenAI. Prints the seconds of audio in the frames that it makes."""

from __future__ import annotations

import asyncio
import json
import sys

from pipecat.frames.frames import TTSAudioRawFrame
from pipecat.services.openai.tts import OpenAITTSService


async def main(url: str, key: str, text: str) -> None:
    service = OpenAITTSService(api_key=key, base_url=url)
    service._sample_rate = 24_000  # as the start of a pipeline sets it
    frames = [frame async for frame in service.run_tts(text, "one")]
    assert all(isinstance(frame, TTSAudioRawFrame) for frame in frames), frames
    print(json.dumps({"seconds": sum(len(frame.audio) for frame in frames) / 48_000}))


asyncio.run(main(*sys.argv[1:]))
