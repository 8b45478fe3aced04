"""Tests that `make test` leaves to `make test-thorough`, which CI runs behind it: more of what others here show.

A line is a regular expression of test ids. What is left of each test in the default run must still show what the test
is there for; a line that fits no test is an error. Those that take minutes each are marked `slow` where they stand.
"""

from __future__ import annotations

import re

# The multilingual model goes the way of the English one, but for its text; turbo has a way of its own.
_ON_THE_WAY_OF_ENGLISH = r"packaging/test_(third_party|replaced|reach_inside)\.py.*\[(.*-)?multilingual"
# Layers of GPT-2 below the same decoder and caches.
_GPT2 = r"unit/(kvcache/test_(identity|eviction|policy_matrix|sliding)|engine/test_scheduler\w*)\.py.*\[gpt2"

LINES = (
    _ON_THE_WAY_OF_ENGLISH,
    _GPT2,
    r"unit/models/test_s3gen_stream\.py::test_pieces_are_as_long_as_the_whole\[(60-1|60-0-pulses|\d-0|\w+-\d-meanflow)",
    r"test_pieces_are_as_long_as_the_whole_where_frames_are_remembered\[\d-(0|-1)",
    r"unit/models/test_s3gen_stream\.py::test_what_is_kept_does_not_grow\[(none|prompt)",
    r"unit/(engine/test_cache_pool|kvcache/test_cache_machine)\.py::test_any_order_of_operations\[(int4|headwindow|dynamic|sliding)",
    r"unit/kvcache/test_headwindow\.py::test_any_order_of_operations\[[12]",
    r"unit/synthesis/test_streaming\.py::test_pieces_of_text_however_cut_are_the_text\[(history|isolated)",
    r"unit/synthesis/test_streaming\.py::test_a_thread_changes_nothing\[(history|append)",
    r"unit/synthesis/test_streaming\.py::test_streamed_tokens_are_the_whole_ones\[(multilingual|turbo-2)",
    r"unit/synthesis/test_streaming\.py::test_first_chunks_of_which_nothing_is_heard_yet\[[234]",
    r"unit/synthesis/test_synthesizer\.py::test_a_stream_closed_at_any_chunk_frees_all\[append",
    r"unit/synthesis/test_conversion\.py::test_up_to_thirty_seconds_are_converted_at_once\[True",
    r"unit/synthesis/test_conversion\.py::test_more_is_converted_in_windows_of_the_same_length\[912601",
    r"unit/test_torch_context\.py.*\[(no grad|grad|in a device|bfloat16 by default|deterministic)",
    r"unit/kvcache/test_policy_matrix\.py.*\[llama-guided-(none|dynamic|sliding|headwindow|compressed)",
    r"unit/kvcache/test_compressed\.py::test_memory\[int\d-torch.bfloat16",
    r"unit/kvcache/test_identity\.py::test_cached\[llama-dynamic",
    r"unit/kvcache/test_eviction\.py.*\[llama-(recency|silence|prosody)\]",
    r"unit/models/test_batch_invariant\.py::test_mixes_of_requests\[([3-9]|1\d)-",
    r"unit/engine/test_guards\.py::test_(a_mixed_batch_equals_its_requests_alone|continued_sequences)\[dynamic",
    r"unit/engine/test_guards\.py::test_requests_join_and_leave\[1-",
    r"unit/engine/test_worker\.py::test_a_program_ends_while_the_thread_is_busy\[(pass|del|raise|threading)",
    r"unit/checkpoints/test_containers\.py::test_a_state_dict_under_any_name_if_it_is_the_only_one\[(generator|params|net|ema|student)",
    r"unit/cli/test_cli\.py::test_no_cache_setting_changes_the_sound\[(use_cache|kvcache.prefix)",
    r"parity/test_t3\.py::test_thirty_layers\[t3_en_full_long",
    r"packaging/test_third_party\.py::test_a_whole_program\[turbo",
    r"packaging/test_reach_inside\.py::test_a_spawned_worker_gets_the_model\[turbo",
    r"packaging/test_reach_inside\.py::test_s3gen_in_half_precision\[(english|turbo-(all but|flow))",
    r"packaging/test_installations\.py::test_the_same_commands\[(editable|wheel)",
    r"packaging/test_beside_upstream\.py::test_(overwritten_by_upstream.*\[stays|the_shim_satisfies)",
    r"integration/test_serve_peers\.py::TestDevnen::test_seed_zero_is_another_way_each_time\[(-1|0_0)",
)


def is_thorough(node: str) -> bool:
    """Whether a test, by its id, is left to `make test-thorough`."""
    return any(re.search(line, node) for line in LINES)


def unmatched(nodes: list[str]) -> list[str]:
    """Lines that fit none of all tests."""
    return [line for line in LINES if not any(re.search(line, node) for node in nodes)]
