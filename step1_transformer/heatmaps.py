"""Where a translation looks: the attention weights of one sentence, drawn ("Attention is all you
need", figures 3 to 5).

Letters: S source tokens, T target tokens, h heads.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

WORD_START = "▁"  # how a space before a token is shown


@torch.no_grad()
def attention(model, source: list[int], target: list[int]) -> dict[str, list[Tensor]]:
    """The weights of each layer: "encoder" (h, S, S) and "cross" (h, T, S).

    `source` ends with </s>, `target` has neither <s> nor </s>. Row t of "cross" shows where the
    model looks as it writes token t of `target`; the last row, as it writes </s>.
    """
    device = next(model.parameters()).device
    input_ids = torch.tensor([source], device=device)
    decoder_input_ids = torch.tensor([[model.config.bos_token_id, *target]], device=device)
    kinds = {
        "encoder": [layer.self_attention.sublayer for layer in model.encoder.layers],
        "cross": [layer.cross_attention.sublayer for layer in model.decoder.layers],
    }
    modules = [module for kind in kinds.values() for module in kind]
    was_training = model.training
    model.eval()
    for module in modules:
        module.keep_weights = True
    try:
        model(input_ids, decoder_input_ids)
        return {kind: [m.weights[0].float().cpu() for m in kinds[kind]] for kind in kinds}
    finally:
        model.train(was_training)
        for module in modules:
            module.keep_weights, module.weights = False, None


def pieces(tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token as text: "▁" where a word starts, "�" for a part of a character."""
    names = []
    for i in ids:
        name = tokenizer.id_to_token(i)
        text = tokenizer.decode([i], skip_special_tokens=False)
        names.append(f"{WORD_START}{text.strip()}" if name.startswith("Ġ") else text or name)
    return names


def draw(
    weights: Tensor, rows: Sequence[str], columns: Sequence[str], path: Path, title: str
) -> Path:
    """One panel a head of weights (h, T, S), with the T `rows` and S `columns` named; a PNG."""
    from matplotlib.figure import Figure

    h, T, S = weights.shape
    across = min(h, 4)
    down = -(-h // across)
    names = [[name.replace("$", r"\$") for name in side] for side in (rows, columns)]
    margins = [0.07 * max(map(len, side)) + 0.1 for side in names]  # inches, at this font size
    size = (across * (0.2 * S + 0.1) + margins[0] + 0.8, down * (0.2 * T + margins[1] + 0.3) + 0.3)
    size = (max(size[0], 6.5), max(size[1], 2.8))  # room for the title and the colour bar's label
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    for axis in axes.flat[h:]:
        axis.set_axis_off()
    for number, (axis, head) in enumerate(zip(axes.flat, weights, strict=False), 1):
        image = axis.imshow(head, cmap="Blues", vmin=0, vmax=float(weights.max()))
        axis.set_title(f"head {number}", fontsize=9)
        axis.set_xticks(range(S), names[1], rotation=90, fontsize=8)
        axis.set_yticks(range(T), names[0], fontsize=8)
        axis.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="weight (a row adds up to 1)", shrink=0.6, aspect=30)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    return path


def draw_all(model, tokenizer, source: list[int], target: list[int], folder: Path) -> list[Path]:
    """A figure for each layer's attention of the encoder, and of the decoder to the source.

    `source` and `target` as for `attention`. The files are encoder-1.png, ..., cross-1.png, ...
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = pieces(tokenizer, source)
    rows = {
        "encoder": columns,
        "cross": pieces(tokenizer, [*target, model.config.eos_token_id]),
    }
    titles = {
        "encoder": "from each source token (rows) to all of them",
        "cross": "from each token as it is written (rows) to the source",
    }
    return [
        draw(
            layer, rows[kind], columns, folder / f"{kind}-{number}.png",
            f"{kind} layer {number}: {titles[kind]}",
        )
        for kind, layers in attention(model, source, target).items()
        for number, layer in enumerate(layers, 1)
    ]  # fmt: skip
