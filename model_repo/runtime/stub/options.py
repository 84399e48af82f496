"""The inputs of a generation request: name, Triton type, and whether it is one value or a list.

TensorRT-LLM's and the vLLM backend's names side by side. What they mean, and whether they are allowed, is
decided in the engine process; here is only how a tensor becomes a value. ``config.pbtxt`` lists the same
names, and every option of the engine that has an effect is among them (tests compare). The rest travel as
request parameters, as do Triton's own ``timeout`` and ``priority``.
"""

from __future__ import annotations

from typing import NamedTuple


class Option(NamedTuple):
    type: str  # Triton's name of the element type
    many: bool = False  # a list of values; otherwise exactly one


PROMPT: dict[str, Option] = {
    "text_input": Option("TYPE_STRING"),
    "messages": Option("TYPE_STRING"),
    "tools": Option("TYPE_STRING"),
    "chat_template_kwargs": Option("TYPE_STRING"),
}

# What form the answer has.
FORM: dict[str, Option] = {
    "skip_reasoning": Option("TYPE_BOOL"),
    "tool_choice": Option("TYPE_STRING"),
    "parallel_tool_calls": Option("TYPE_BOOL"),
    "response_format": Option("TYPE_STRING"),
    "structured_outputs": Option("TYPE_STRING"),
    "guided_decoding_guide_type": Option("TYPE_STRING"),
    "guided_decoding_guide": Option("TYPE_STRING"),
}

SAMPLING: dict[str, Option] = {
    "max_tokens": Option("TYPE_INT32"),
    "max_completion_tokens": Option("TYPE_INT32"),
    "max_new_tokens": Option("TYPE_INT32"),
    "request_output_len": Option("TYPE_INT32"),
    "min_tokens": Option("TYPE_INT32"),
    "min_length": Option("TYPE_INT32"),
    "temperature": Option("TYPE_FP32"),
    "top_k": Option("TYPE_INT32"),
    "top_p": Option("TYPE_FP32"),
    "min_p": Option("TYPE_FP32"),
    "repetition_penalty": Option("TYPE_FP32"),
    "presence_penalty": Option("TYPE_FP32"),
    "frequency_penalty": Option("TYPE_FP32"),
    "random_seed": Option("TYPE_UINT64"),
    "seed": Option("TYPE_INT64"),
    "stop_words": Option("TYPE_STRING", many=True),
    "stop": Option("TYPE_STRING", many=True),
    "stop_token_ids": Option("TYPE_INT32", many=True),
    "bad_words": Option("TYPE_STRING", many=True),
    "end_id": Option("TYPE_INT32"),
    "pad_id": Option("TYPE_INT32"),
    "ignore_eos": Option("TYPE_BOOL"),
    "beam_width": Option("TYPE_INT32"),
    "length_penalty": Option("TYPE_FP32"),
    "logprobs": Option("TYPE_INT32"),
    "return_log_probs": Option("TYPE_BOOL"),
    "return_logprobs": Option("TYPE_BOOL"),
    "parse": Option("TYPE_BOOL"),
    "sampling_parameters": Option("TYPE_STRING"),
}

# How the answer is laid out: the stub acts on these.
ANSWER: dict[str, Option] = {
    "stream": Option("TYPE_BOOL"),
    "streaming": Option("TYPE_BOOL"),
    "exclude_input_in_output": Option("TYPE_BOOL"),
    "return_finish_reason": Option("TYPE_BOOL"),
    "return_num_input_tokens": Option("TYPE_BOOL"),
    "return_num_output_tokens": Option("TYPE_BOOL"),
    "return_token_ids": Option("TYPE_BOOL"),
}

INPUTS: dict[str, Option] = {**PROMPT, **FORM, **SAMPLING, **ANSWER}

OUTPUTS: dict[str, str] = {
    "text_output": "TYPE_STRING",
    "reasoning_output": "TYPE_STRING",
    "tool_calls": "TYPE_STRING",
    "finish_reason": "TYPE_STRING",
    "num_input_tokens": "TYPE_INT32",
    "num_output_tokens": "TYPE_INT32",
    "token_ids": "TYPE_INT32",
    "logprobs": "TYPE_STRING",
}
