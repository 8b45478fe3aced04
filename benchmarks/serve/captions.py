"""What docs/benchmarks.md says of the server's tables.

Owns: the words. Does not know: the page, figures. Imports nothing.
"""

HTTP = """\
`chatterbox serve` at its defaults in a process of its own, clients in another, over loopback, a connection for each
request."""

SOAK = """\
32 clients of one server, on a machine that others used too: speech in all formats, in events, over WebSockets; a third
of those who listen leave half-way, some read at half the pace of playing; voices and jobs come and go. *Not earned*: a
status that the request should not have, or a body that was cut."""

KILLED = """\
SIGKILL at a random moment while clients add and remove voices and jobs, then a new start on the same folders. *Looked
for*: what was acknowledged. *In doubt*: a request that had no answer when the server died; it may be done or not, but
not by half. *Wrong*: lost, back again, or not whole. What a machine loses with its power is not in this."""

SERVE_TABLES = {
    "first audio": """\
First bytes that a decoder makes samples of, over the first chunk of `generate_stream` in a process of its own: one
text, known to both, in turn. Brackets are quartiles of the turns' differences.""",
    "at once": """\
Streams of PCM that are asked for at the same moment; a player starts with 100 ms of audio. *rtf*: seconds until all of
a stream was there, over those that it plays. *waited*: how long a player stood still after its start.""",
    "leaving": """\
From a listener's leaving until the server holds no row for it, as `/metrics` tells it; the asking is in it.""",
    "paced": """\
Readers of one job's audio, which is made, who take a frame when the one before has been played.""",
    "load, embedded voice": """\
Whole WAVs, clients that ask again at once. The other server holds a lock around `generate` of **this** package: the
embedded voice is none that chatterbox-tts 0.1.7 can load. Brackets are 95% intervals of the median of paired turns.""",
    "load, published size": """\
The same with synthetic weights and texts that are bounded, against a lock around `generate` of chatterbox-tts 0.1.7.
There each call brings the voice's recording, as in travisvn's server; this one was sent it once. *realtime* is an
approximation (docs/performance.md); without it the speech is the same.""",
    "soak": "All that was answered, and what no request had earned.",
    "held at the end": "What the server held once all clients had left.",
    "memory": """\
Resident memory of the server's process a minute after the start, at the end, and when all are gone. T3's rows are set
aside once, and count from when speech of their length first fills them, up to `chatterbox_engine_cache_bytes`; nobody's
are given back.""",
    "answers": "Answers by what was asked; 101 is a WebSocket's.",
}
