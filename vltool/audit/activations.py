"""What autograd keeps of a forward pass, and what comes and goes beside it, tensor by tensor, in bytes.

Sources: transformers' modeling_qwen3_vl.py for the operations, torch's derivatives.yaml for what each of them saves,
peft's lora/layer.py for the casts of an adapter's input. A test counts what autograd really saves.

Suffixes as in the code that is counted: T tokens or patches, H hidden size, I inner size of an MLP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vltool.audit.towers import Text, Vision
from vltool.audit.weights import Weight

FP32 = 4
_ROTARY_FP32 = FP32
"""The vision tower's angles are made, and stay, in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """In which precision a pass is made; sizes are bytes of an element."""

    stream: int
    """Of hidden states and of the base's weights."""
    adapter: int
    """Of an adapter's weights."""
    autocast: bool = False
    """Whether products are made in 16 bits whatever their inputs are (without DeepSpeed, `bf16: true`)."""
    packed: bool = False
    """Whether the language tower's base is in 4 bits."""
    dropout: float = 0.0
    """Of what enters an adapter."""
    norms_in_fp32: bool = True
    """Whether autocast makes layer norms in fp32: CUDA's does, the CPU's does not."""
    padded: bool = False
    """Whether rows of a batch differ in length: attention gets a mask, and keys and values repeated for each head."""

    @property
    def product(self) -> int:
        """Of what a matrix product gives."""
        return 2 if self.autocast else self.stream


@dataclass(slots=True)
class _Kept:
    """Bytes a token that autograd keeps of a layer; a tensor that several operations save is kept once."""

    arithmetic: Arithmetic
    total: int = 0

    def add(self, width: int, size: int) -> None:
        self.total += width * size

    def inputs(self, weights: Iterable[Weight | None], *, size: int, language: bool, kept_anyway: bool = False) -> None:
        """What linear layers keep of the one tensor that all of them read.

        size: bytes of its elements. kept_anyway: whether another operation saves it, too.
        """
        how = self.arithmetic
        shared = False
        for weight in weights:
            if weight is None:
                continue
            width = weight.shape[1]
            if weight.trained or weight.copied:
                # Autocast casts what is not yet in 16 bits, for each product anew.
                if size == how.product:
                    shared = True
                else:
                    self.add(width, how.product)
            if not weight.rank:
                continue
            # bitsandbytes' LoRA leaves the cast to autocast.
            cast = size if language and how.packed and how.autocast else how.adapter
            entering = how.product if how.autocast else cast
            if how.dropout:
                # A mask of one byte each; what it leaves is a tensor of its own.
                self.add(width, 1 + entering)
            elif cast == size and entering == size:
                shared = True
            else:
                self.add(width, entering)
            # What the first factor gives, which the second one reads.
            self.add(weight.rank, how.product if how.autocast else how.adapter)
        if shared and not kept_anyway:
            self.add(next(weight.shape[1] for weight in weights if weight is not None), size)

    def rms_norm(self, width: int, size: int, weight: Weight | None, *, groups: int = 1) -> None:
        """Its input in fp32 and a number a group; before its weight what is normed, where that trains."""
        self.add(width, FP32)
        self.add(groups, FP32)
        if weight is not None and (weight.trained or weight.copied):
            self.add(width, size)

    def layer_norm(self, width: int) -> int:
        """Its input, its mean and its deviation; bytes of an element of what it gives."""
        how = self.arithmetic
        size = FP32 if how.autocast and how.norms_in_fp32 else how.stream
        self.add(width, size)
        self.add(2, size)
        return size


def decoder_layer(text: Text, weights: Mapping[str, Weight], how: Arithmetic) -> int:
    """Bytes a token that autograd keeps of one decoder layer through which a gradient flows."""
    kept, product = _Kept(how), how.product
    hidden, query, key = text.hidden, text.query, text.key

    def linear(*names: str) -> list[Weight | None]:
        return [weights.get(f"{name}.weight") for name in names]

    kept.rms_norm(hidden, how.stream, weights.get("input_layernorm.weight"))
    kept.inputs(linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), size=how.stream, language=True)
    kept.rms_norm(query, product, weights.get("self_attn.q_norm.weight"), groups=text.heads)
    kept.rms_norm(key, product, weights.get("self_attn.k_norm.weight"), groups=text.kv_heads)
    # Flash attention keeps what it reads, what it gives, and the logarithm of each row's sum.
    kept.add(2 * query, product)
    kept.add(2 * (query if how.padded else key), product)
    kept.add(text.heads, FP32)
    kept.inputs(linear("self_attn.o_proj"), size=product, language=True, kept_anyway=True)
    kept.rms_norm(hidden, how.stream, weights.get("post_attention_layernorm.weight"))
    if text.experts_a_token:
        # Experts read rows that were gathered for them; their results are weighed before they are added up.
        kept.add(2 * text.experts_a_token * hidden, product)
        kept.add(4 * text.inner, product)
        return kept.total
    kept.inputs(linear("mlp.gate_proj", "mlp.up_proj"), size=how.stream, language=True)
    # SiLU keeps the gate; the product keeps SiLU's result and `up`.
    kept.add(3 * text.inner, product)
    kept.inputs(linear("mlp.down_proj"), size=product, language=True)
    return kept.total


def vision_block(vision: Vision, weights: Mapping[str, Weight], how: Arithmetic) -> int:
    """Bytes a patch that autograd keeps of one vision block through which a gradient flows."""
    kept, product, hidden = _Kept(how), how.product, vision.hidden
    kept_norm = kept.layer_norm(hidden)
    kept.inputs([weights.get("attn.qkv.weight")], size=kept_norm, language=False)
    # Queries and keys turned by their angles, and values as part of what qkv gave; then as above.
    kept.add(2 * hidden + 3 * hidden + hidden, product)
    kept.add(vision.heads, FP32)
    kept.inputs([weights.get("attn.proj.weight")], size=product, language=False)
    kept_norm = kept.layer_norm(hidden)
    kept.inputs([weights.get("mlp.linear_fc1.weight")], size=kept_norm, language=False)
    kept.add(vision.inner, product)
    kept.inputs([weights.get("mlp.linear_fc2.weight")], size=product, language=False)
    return kept.total


def merger(vision: Vision, weights: Mapping[str, Weight], how: Arithmetic) -> int:
    """Bytes a merged token that autograd keeps of one merger."""
    kept, wide = _Kept(how), vision.merged_hidden
    kept_norm = kept.layer_norm(wide)
    kept.inputs([weights.get("linear_fc1.weight")], size=kept_norm, language=False)
    kept.add(wide, how.product)
    kept.inputs([weights.get("linear_fc2.weight")], size=how.product, language=False)
    return kept.total


def layer_gradients(text: Text, weights: Mapping[str, Weight], how: Arithmetic) -> int:
    """Bytes a token that come and go at the worst place of a decoder layer's backward pass.

    That is the last matrix of the MLP: the gradient of its input through the base, and through the adapter in the
    product's precision and in the adapter's, between which it is cast. Without an adapter it is the product before:
    the gradient of what it gave, and of both that it read. Beside either, the residual's gradient twice.
    """
    inner = text.inner * (2 * how.product + how.adapter if _casts(weights, how) else 3 * how.product)
    attention = text.query * (2 * how.product + FP32) + 2 * (text.query if how.padded else text.key) * how.product
    return max(inner, attention) + 2 * text.hidden * how.stream


def layer_results(text: Text, weights: Mapping[str, Weight], how: Arithmetic) -> int:
    """Bytes a token that come and go in a decoder layer's forward pass beside what autograd keeps.

    At the last matrix of the MLP: what enters it, and the same in the adapter's precision; the residual, and what is
    added to it.
    """
    inner = text.inner * (how.product + how.adapter if _casts(weights, how) else how.product)
    return inner + 2 * text.hidden * how.stream


def teacher_results(text: Text, how: Arithmetic) -> int:
    """Bytes a token that come and go in a decoder layer of a pass of which nothing is kept.

    SiLU's result, `up` and their product; the residual, and a normed copy.
    """
    return 3 * text.inner * how.product + 2 * text.hidden * how.stream


def _casts(weights: Mapping[str, Weight], how: Arithmetic) -> bool:
    """Whether the input of the MLP's last matrix is cast for an adapter."""
    down = weights.get("mlp.down_proj.weight")
    return down is not None and down.rank > 0 and how.adapter != how.product and not (how.packed and how.autocast)


def block_results(vision: Vision, how: Arithmetic) -> int:
    """Bytes a patch that come and go at the worst place of a vision block's forward pass without a gradient.

    Either the MLP's two inner tensors, or qkv with queries and keys in fp32, before and after they are turned.
    """
    product, hidden = how.product, vision.hidden
    mlp = 2 * vision.inner * product
    attention = 3 * hidden * product + 2 * hidden * (2 * FP32 + product)
    return max(mlp, attention) + 2 * hidden * how.stream + hidden * FP32
