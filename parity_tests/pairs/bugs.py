"""Mistakes that people make in a port, each an edit of one place in the source of a port."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["inference", "gradient", "training"]


@dataclass(frozen=True)
class Bug:
    """A mistake, where it sits and how it shows.

    Attributes:
        name: what went wrong, unique among all bugs.
        pair: the pair whose port has it.
        old: the right code, which stands once in the port's source.
        new: the wrong code.
        module: the torch module at fault, or "" for the code of the whole net's forward. Where
            several modules share the code, it is the one that runs first.
        mode: "inference" if outputs differ in evaluation; "gradient" if only gradients do, in
            evaluation too; "training" if nothing differs in evaluation.
        looks_like: the kind of mistake.
        also: other modules that have it, because they share the code, or because it sits between
            two modules.
    """

    name: str
    pair: str
    old: str
    new: str
    module: str
    mode: Mode
    looks_like: str
    also: tuple[str, ...] = ()


def inference(
    pair: str, name: str, module: str, looks_like: str, *, old: str, new: str, also: str = ""
) -> Bug:
    """Return a bug that changes outputs in evaluation."""
    return Bug(name, pair, old, new, module, "inference", looks_like, tuple(also.split()))


def gradient(
    pair: str, name: str, module: str, looks_like: str, *, old: str, new: str, also: str = ""
) -> Bug:
    """Return a bug that changes gradients alone."""
    return Bug(name, pair, old, new, module, "gradient", looks_like, tuple(also.split()))


def training(
    pair: str, name: str, module: str, looks_like: str, *, old: str, new: str, also: str = ""
) -> Bug:
    """Return a bug that only training shows."""
    return Bug(name, pair, old, new, module, "training", looks_like, tuple(also.split()))


RESIDUAL = (
    inference(
        "residual", "stem padded as SAME", "stem", "padding",
        old="        self.stem = conv(channels, width, 3, 2, rngs)",
        new="        self.stem = nnx.Conv(\n"
        '            channels, width, (3, 3), 2, padding="SAME", use_bias=False, rngs=rngs\n'
        "        )",
    ),
    inference(
        "residual", "strided block padded as SAME", "block2.conv1", "padding",
        old="        self.conv1 = conv(in_width, width, 3, stride, rngs)",
        new="        self.conv1 = nnx.Conv(\n"
        '            in_width, width, (3, 3), stride, padding="SAME", use_bias=False, rngs=rngs\n'
        "        )",
    ),
    inference(
        "residual", "stride in the second convolution", "block2.conv1", "stride",
        old="        self.conv1 = conv(in_width, width, 3, stride, rngs)\n"
        "        self.norm1 = BatchNorm(width)\n"
        "        self.conv2 = conv(width, width, 3, 1, rngs)",
        new="        self.conv1 = conv(in_width, width, 3, 1, rngs)\n"
        "        self.norm1 = BatchNorm(width)\n"
        "        self.conv2 = conv(width, width, 3, stride, rngs)",
    ),
    inference(
        "residual", "batch norm with the eps of Keras", "norm", "eps",
        old="EPS = 1e-5", new="EPS = 1e-3",
    ),
    inference(
        "residual", "batch norm divides by the variance", "norm", "scale",
        old="* lax.rsqrt(var + EPS)", new="/ (var + EPS)",
    ),
    inference(
        "residual", "batch norm adds its eps to the deviation", "norm", "eps",
        old="* lax.rsqrt(var + EPS)", new="/ (jnp.sqrt(var) + EPS)",
    ),
    inference(
        "residual", "average instead of max pool", "pool", "pooling",
        old="nnx.max_pool(", new="nnx.avg_pool(",
    ),
    inference(
        "residual", "pool keeps the odd row", "pool", "padding",
        old="(2, 2), strides=(2, 2))", new='(2, 2), strides=(2, 2), padding="SAME")',
    ),
    inference(
        "residual", "global max instead of mean", "", "pooling",
        old="x.mean(axis=(1, 2))", new="x.max(axis=(1, 2))",
    ),
    inference(
        "residual", "head without its bias", "head", "missing-bias",
        old="        return self.head(x.mean(axis=(1, 2)))",
        new="        return x.mean(axis=(1, 2)) @ self.head.kernel[...]",
    ),
    inference(
        "residual", "leaky ReLU after the stem", "", "activation",
        old="nnx.relu(self.norm(self.stem(x)))", new="nnx.leaky_relu(self.norm(self.stem(x)))",
    ),
    inference(
        "residual", "ReLU before the norm of the stem", "", "order",
        old="nnx.relu(self.norm(self.stem(x)))", new="self.norm(nnx.relu(self.stem(x)))",
    ),
    inference(
        "residual", "shortcut added after the ReLU", "block1", "order",
        old="return nnx.relu(y + aside)", new="return nnx.relu(y) + aside",
    ),
    inference(
        "residual", "block without its last ReLU", "block1", "activation",
        old="return nnx.relu(y + aside)", new="return y + aside",
    ),
    inference(
        "residual", "shortcut without its norm", "block2.shortcut.1", "missing-norm",
        old="return self.norm(self.conv(x))", new="return self.conv(x)",
    ),
    inference(
        "residual", "channels of the image reversed", "stem", "swapped",
        old='load_conv(net.stem, state, "stem")',
        new='load_conv(net.stem, {"stem.weight": state["stem.weight"][:, ::-1]}, "stem")',
    ),
    inference(
        "residual", "kernels with height and width exchanged", "stem", "transposed",
        old="weight.transpose(2, 3, 1, 0)", new="weight.transpose(3, 2, 1, 0)",
    ),
    inference(
        "residual", "values of the first norm in both places", "block1.norm2", "swapped",
        old='load_norm(block.norm2, state, f"{name}.norm2")',
        new='load_norm(block.norm2, state, f"{name}.norm1")',
    ),
    gradient(
        "residual", "stem frozen", "stem", "frozen",
        old="self.norm(self.stem(x))", new="self.norm(lax.stop_gradient(self.stem(x)))",
    ),
    gradient(
        "residual", "shortcut detached", "block1", "frozen",
        old="return nnx.relu(y + aside)", new="return nnx.relu(y + lax.stop_gradient(aside))",
        also="block2",
    ),
    gradient(
        "residual", "weights of the norms frozen", "norm", "frozen",
        old="normal * self.weight[...]", new="normal * lax.stop_gradient(self.weight[...])",
        also="block1.norm1 block1.norm2 block2.norm1 block2.norm2 block2.shortcut.1",
    ),
    training(
        "residual", "momentum of torch taken as that of Flax", "norm", "momentum",
        old="MOMENTUM = 0.9", new="MOMENTUM = 0.1",
    ),
    training(
        "residual", "momentum of Flax's default", "norm", "momentum",
        old="MOMENTUM = 0.9", new="MOMENTUM = 0.99",
    ),
    training(
        "residual", "biased running variance", "norm", "statistics",
        old="(1 - MOMENTUM) * unbiased", new="(1 - MOMENTUM) * var",
    ),
    training(
        "residual", "batch divided by the unbiased variance", "norm", "statistics",
        old="x.var(axis=(0, 1, 2))", new="x.var(axis=(0, 1, 2), ddof=1)",
    ),
    training(
        "residual", "deviation recorded instead of variance", "norm", "statistics",
        old="(1 - MOMENTUM) * unbiased", new="(1 - MOMENTUM) * jnp.sqrt(unbiased)",
    ),
    training(
        "residual", "running statistics used in training", "norm", "statistics",
        old="if self.use_running_average:", new="if self is not None:",
    ),
    training(
        "residual", "running statistics never recorded", "norm", "statistics",
        old="            self.record(mean, var, x.size // x.shape[-1])\n", new="",
    ),
    training(
        "residual", "statistics of the first image alone", "norm", "statistics",
        old="x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))",
        new="x[0].mean(axis=(0, 1)), x[0].var(axis=(0, 1))",
    ),
    training(
        "residual", "batch statistics detached", "norm", "frozen",
        old="            self.record(mean, var, x.size // x.shape[-1])",
        new="            mean, var = lax.stop_gradient((mean, var))\n"
        "            self.record(mean, var, x.size // x.shape[-1])",
        also="block1.norm1 block1.norm2 block2.norm1 block2.norm2 block2.shortcut.1",
    ),
)  # fmt: skip

TRANSFORMER = (
    inference(
        "transformer", "GELU by tanh", "mlp.1", "gelu-tanh",
        old="approximate=False", new="approximate=True",
    ),
    inference(
        "transformer", "ReLU instead of GELU", "mlp.1", "activation",
        old='jax.nn.gelu(linear(params["0"], x), approximate=False)',
        new='jax.nn.relu(linear(params["0"], x))',
    ),
    inference(
        "transformer", "layer norm with the eps of Flax", "norm1", "eps",
        old="EPS = 1e-5", new="EPS = 1e-6",
    ),
    inference(
        "transformer", "layer norm by the unbiased variance", "norm1", "statistics",
        old="x.var(axis=-1, keepdims=True)", new="x.var(axis=-1, keepdims=True, ddof=1)",
    ),
    inference(
        "transformer", "last norm without its weight", "norm", "missing-scale",
        old='return layer_norm(params["norm"], x)',
        new='return layer_norm({**params["norm"], "scale": jnp.ones(x.shape[-1], x.dtype)}, x)',
    ),
    inference(
        "transformer", "last norm left out", "norm", "missing-norm",
        old='return layer_norm(params["norm"], x)', new="return x",
    ),
    inference(
        "transformer", "values of the second norm in the first", "norm1", "swapped",
        old='"norm1": flat["norm1"]', new='"norm1": flat["norm2"]',
    ),
    inference(
        "transformer", "scores without scale", "attn", "scale",
        old=" / q.shape[-1] ** 0.5", new="",
    ),
    inference(
        "transformer", "scores scaled by the width of the model", "attn", "scale",
        old="/ q.shape[-1] ** 0.5", new="/ x.shape[-1] ** 0.5",
    ),
    inference(
        "transformer", "mask of minus ten", "attn", "mask",
        old="-jnp.inf", new="-10.0",
    ),
    inference(
        "transformer", "mask lets the next position in", "attn", "mask",
        old="jnp.tril(jnp.ones((t, t), bool))", new="jnp.tril(jnp.ones((t, t), bool), 1)",
    ),
    inference(
        "transformer", "mask forgotten", "attn", "mask",
        old="scores + causal_mask(x.shape[1])", new="scores",
    ),
    inference(
        "transformer", "softmax over the queries", "attn", "axis",
        old="causal_mask(x.shape[1]), axis=-1", new="causal_mask(x.shape[1]), axis=-2",
    ),
    inference(
        "transformer", "heads split as if they were the last axis", "attn", "order",
        old="x.reshape(b, t, HEADS, d // HEADS).transpose(0, 2, 1, 3)",
        new="x.reshape(b, t, d // HEADS, HEADS).transpose(0, 3, 1, 2)",
    ),
    inference(
        "transformer", "heads joined without moving their axis back", "attn", "order",
        old="(weights @ v).transpose(0, 2, 1, 3)", new="weights @ v",
    ),
    inference(
        "transformer", "queries and keys exchanged", "attn", "swapped",
        old="q, k, v = jnp.split(", new="k, q, v = jnp.split(",
    ),
    inference(
        "transformer", "one square weight left as it is", "attn.proj", "transposed",
        old='"proj": flat["attn.proj"]',
        new='"proj": {**flat["attn.proj"], "kernel": state["attn.proj.weight"]}',
    ),
    inference(
        "transformer", "queries, keys and values without bias", "attn.qkv", "missing-bias",
        old='jnp.split(linear(params["qkv"], x), 3', new='jnp.split(x @ params["qkv"]["kernel"], 3',
    ),
    inference(
        "transformer", "norm after the feed-forward part", "", "order",
        old='x + mlp(params["mlp"], layer_norm(params["norm2"], x))',
        new='layer_norm(params["norm2"], x + mlp(params["mlp"], x))',
    ),
    inference(
        "transformer", "normalised input goes around the attention", "", "order",
        old='    x = x + attention(params["attn"], layer_norm(params["norm1"], x))',
        new='    x = layer_norm(params["norm1"], x)\n    x = x + attention(params["attn"], x)',
    ),
    gradient(
        "transformer", "last linear layer frozen", "mlp.2", "frozen",
        old='linear(params["2"], hidden)', new='linear(jax.lax.stop_gradient(params["2"]), hidden)',
    ),
    gradient(
        "transformer", "attention weights detached", "attn", "frozen",
        old="(weights @ v)", new="(jax.lax.stop_gradient(weights) @ v)",
    ),
    gradient(
        "transformer", "input detached where it goes around", "", "frozen",
        old='x = x + mlp(params["mlp"],', new='x = jax.lax.stop_gradient(x) + mlp(params["mlp"],',
    ),
    gradient(
        "transformer", "mean of the layer norm detached", "norm1", "frozen",
        old="mean = x.mean(axis=-1, keepdims=True)",
        new="mean = jax.lax.stop_gradient(x.mean(axis=-1, keepdims=True))",
        also="norm2 norm",
    ),
)  # fmt: skip

MIXER = (
    inference(
        "mixer", "leaky ReLU after the patches", "patches.1", "activation",
        old="patches = nn.relu(x)", new="patches = nn.leaky_relu(x)",
    ),
    inference(
        "mixer", "patches start one pixel early", "patches.0", "shifted",
        old='padding="VALID"', new="padding=[(1, 0), (1, 0)]",
    ),
    inference(
        "mixer", "channels of the image reversed in the mixer", "patches.0", "swapped",
        old='name="patches")(x)', new='name="patches")(x[..., ::-1])',
    ),
    inference(
        "mixer", "depthwise kernel mirrored", "block1.depthwise", "mirrored",
        old='"depthwise": convert_conv(state, f"{name}.depthwise")',
        new='"depthwise": {\n'
        '            "kernel": convert_conv(state, f"{name}.depthwise")["kernel"][::-1, ::-1],\n'
        '            "bias": state[f"{name}.depthwise.bias"],\n'
        "        }",
    ),
    inference(
        "mixer", "height and width of the kernels exchanged", "patches.0", "transposed",
        old="transpose(2, 3, 1, 0)", new="transpose(3, 2, 1, 0)",
    ),
    inference(
        "mixer", "depthwise kernel with height and width exchanged", "block1.depthwise",
        "transposed",
        old='"depthwise": convert_conv(state, f"{name}.depthwise")',
        new='"depthwise": {\n'
        '            "kernel": state[f"{name}.depthwise.weight"].transpose(3, 2, 1, 0),\n'
        '            "bias": state[f"{name}.depthwise.bias"],\n'
        "        }",
    ),
    inference(
        "mixer", "depthwise kernel shifted by one pixel", "block1.depthwise", "shifted",
        old="(5, 5), padding=2,", new="(5, 5), padding=[(1, 3), (1, 3)],",
    ),
    inference(
        "mixer", "borders go round", "block1.depthwise", "padding",
        old="(5, 5), padding=2,", new='(5, 5), padding="CIRCULAR",',
    ),
    inference(
        "mixer", "pointwise weight left as it is", "block1.pointwise", "transposed",
        old='"pointwise": convert_conv(state, f"{name}.pointwise")',
        new='"pointwise": {\n'
        '            "kernel": state[f"{name}.pointwise.weight"].transpose(2, 3, 0, 1),\n'
        '            "bias": state[f"{name}.pointwise.bias"],\n'
        "        }",
    ),
    inference(
        "mixer", "input added before the ReLU", "block1", "order",
        old="x + nn.relu(depthwise(x))", new="nn.relu(x + depthwise(x))",
    ),
    inference(
        "mixer", "input does not go around", "block1", "missing-shortcut",
        old="x + nn.relu(depthwise(x))", new="nn.relu(depthwise(x))",
    ),
    inference(
        "mixer", "values of the first block in both", "block2", "swapped",
        old='"block2": convert_block(state, "block2")',
        new='"block2": convert_block(state, "block1")',
    ),
    inference(
        "mixer", "dilation forgotten", "dilated", "dilation",
        old="padding=2, kernel_dilation=2,", new="padding=1,",
    ),
    inference(
        "mixer", "no ReLU after the dilated convolution", "", "activation",
        old="x = nn.relu(dilated(x))", new="x = dilated(x)",
    ),
    inference(
        "mixer", "transposed convolution not mirrored", "up", "mirrored",
        old="kernel[::-1, ::-1]", new="kernel",
    ),
    inference(
        "mixer", "output padding at the wrong side", "up", "shifted",
        old="[(1, 2), (1, 2)]", new="[(2, 1), (2, 1)]",
    ),
    inference(
        "mixer", "bilinear instead of nearest", "enlarge", "interpolation",
        old='"nearest"', new='"bilinear"',
    ),
    inference(
        "mixer", "concatenated in the other order", "", "order",
        old="[x, enlarge(patches)]", new="[enlarge(patches), x]",
    ),
    inference(
        "mixer", "head of the mixer without its bias", "head", "missing-bias",
        old='(1, 1), name="head")', new='(1, 1), use_bias=False, name="head")',
    ),
    gradient(
        "mixer", "depthwise convolution frozen", "block1.depthwise", "frozen",
        old="nn.relu(depthwise(x))", new="nn.relu(jax.lax.stop_gradient(depthwise(x)))",
        also="block1 block2",
    ),
    gradient(
        "mixer", "enlarged patches detached", "", "frozen",
        old="enlarge(patches)]", new="jax.lax.stop_gradient(enlarge(patches))]",
        also="enlarge",
    ),
    gradient(
        "mixer", "weights of the head frozen", "head", "frozen",
        old='        return nn.Conv(self.classes, (1, 1), name="head")(x)',
        new='        frozen = nn.map_variables(nn.Conv, "params", jax.lax.stop_gradient)\n'
        '        return frozen(self.classes, (1, 1), name="head")(x)',
    ),
)  # fmt: skip

LSTM = (
    inference(
        "lstm", "output gate before the candidate", "cell", "order",
        old='("input", "forget", "candidate", "output")',
        new='("input", "forget", "output", "candidate")',
    ),
    inference(
        "lstm", "forget gate before the input gate", "cell", "order",
        old='("input", "forget", "candidate", "output")',
        new='("forget", "input", "candidate", "output")',
    ),
    inference(
        "lstm", "sigmoid of the candidate", "cell", "activation",
        old='jnp.tanh(gate(params["candidate"]', new='jax.nn.sigmoid(gate(params["candidate"]',
    ),
    inference(
        "lstm", "sigmoid of the memory", "cell", "activation",
        old="shows * jnp.tanh(memory)", new="shows * jax.nn.sigmoid(memory)",
    ),
    inference(
        "lstm", "memory shown without tanh", "cell", "activation",
        old="shows * jnp.tanh(memory)", new="shows * memory",
    ),
    inference(
        "lstm", "hard sigmoid in a gate", "cell", "activation",
        old='lets_in = jax.nn.sigmoid(', new='lets_in = jax.nn.hard_sigmoid(',
    ),
    inference(
        "lstm", "one bias of two", "cell", "missing-bias",
        old=' + params["hidden_bias"]', new="",
    ),
    inference(
        "lstm", "one added to the forget gate", "cell", "scale",
        old='jax.nn.sigmoid(gate(params["forget"], x, hidden))',
        new='jax.nn.sigmoid(gate(params["forget"], x, hidden) + 1)',
    ),
    inference(
        "lstm", "square hidden weights left as they are", "cell", "transposed",
        old="weight_hh.T", new="weight_hh",
    ),
    inference(
        "lstm", "started from ones", "", "initial-state",
        old="jnp.zeros((x.shape[0]", new="jnp.ones((x.shape[0]",
    ),
    inference(
        "lstm", "time reversed", "", "order",
        old="x.swapaxes(0, 1))\n", new="x.swapaxes(0, 1), reverse=True)\n",
    ),
    inference(
        "lstm", "hidden states from before the step", "", "shifted",
        old="return (hidden, memory), hidden", new="return (hidden, memory), carry[0]",
    ),
    inference(
        "lstm", "memories instead of hidden states", "", "swapped",
        old="return (hidden, memory), hidden", new="return (hidden, memory), memory",
    ),
    inference(
        "lstm", "head on the memory", "", "swapped",
        old="(last, _), states", new="(_, last), states",
    ),
    inference(
        "lstm", "head on the mean of all steps", "", "pooling",
        old="scores = last @", new="scores = states.mean(axis=0) @",
    ),
    inference(
        "lstm", "head of the lstm without its bias", "head", "missing-bias",
        old=' + params["head"]["bias"]', new="",
    ),
    gradient(
        "lstm", "hidden weights frozen", "cell", "frozen",
        old='hidden @ params["hidden_kernel"]',
        new='hidden @ jax.lax.stop_gradient(params["hidden_kernel"])',
    ),
    gradient(
        "lstm", "no gradient through time", "", "frozen",
        old='cell(params["cell"], carry, x_now)',
        new='cell(params["cell"], jax.lax.stop_gradient(carry), x_now)',
        also="cell",
    ),
    gradient(
        "lstm", "last state detached before the head", "", "frozen",
        old="scores = last @", new="scores = jax.lax.stop_gradient(last) @",
        also="head cell",
    ),
)  # fmt: skip

BUGS: tuple[Bug, ...] = (*RESIDUAL, *TRANSFORMER, *MIXER, *LSTM)
