"""The model: an embedding, transformer blocks on unpadded rows, and the head of an objective.

Nothing here works on padding: the rows of all samples of a batch lie back to back (T of them).
Shape suffixes: see elemdist/rows.py; S segments, E = values of an element.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from elemdist.attention import Segments
from elemdist.batch import Batch
from elemdist.blocks import Block, Rotation, layer_norm, recomputed, rotation
from elemdist.embedding import ElementwiseEmbedding, build_embedding
from elemdist.heads import Classifier, ElementHead, Scored, Scores
from elemdist.model_config import ModelConfig
from elemdist.pooling import pooled_rows
from elemdist.rows import FIRST_SPECIAL, PAD
from elemdist.run_settings import MemorySettings
from elemdist.slot_decoder import SlotDecoder
from elemdist.wide import Wide


class Encoder(nn.Module):
    """Rows to vectors: ``(T, V) uint8 -> (T, W)``, a row attending within its segment only.

    Where the classifier has a wide part, a tuple: the vectors, and what that one counts, see
    :meth:`elemdist.wide.Counts.logs`.
    """

    def __init__(self, config: ModelConfig, memory: MemorySettings) -> None:
        super().__init__()
        model = self.model = config.model
        self.checkpoint_every, self.wide = memory.checkpoint_every, config.wide
        self.embedding = build_embedding(config)
        embedded = config.embedding_width
        learned = model.positions == "learned"
        self.positions = nn.Embedding(config.positions, embedded) if learned else None
        self.norm = layer_norm(embedded, model.biases)
        self.drop = nn.Dropout(model.dropout)
        self.widen = nn.Linear(embedded, model.width) if model.embedding_width else nn.Identity()
        shared = model.backbone == "albert"
        slots = config.v if model.ablation.first_projection == "block_diagonal" else 0
        self.blocks = nn.ModuleList(
            Block(
                model,
                config.causal,
                window_of(config, number),
                slots if number == 0 else 0,
                memory.tile_rows,
            )
            for number in range(1 if shared else model.layers)
        )
        pre = model.norm == "pre"
        self.final_norm = layer_norm(model.width, model.biases) if pre else nn.Identity()

    def embed(self, rows_TV: Tensor, position_T: Tensor) -> Tensor:
        """What goes into the first block."""
        return self.placed(self.embedding(rows_TV), position_T)

    def placed(self, x_TW: Tensor, position_T: Tensor) -> Tensor:
        """Embedded rows at their positions."""
        if self.positions is not None:
            x_TW = x_TW + self.positions(position_T)
        return self.widen(self.drop(self.norm(x_TW)))

    def turn(self, position_T: Tensor) -> Rotation | None:
        """The rotation of queries and keys at these positions; None where they are learned."""
        model = self.model
        if model.positions == "learned":
            return None
        return rotation(position_T, model.width // model.heads, model.rotary_base)

    def each_block(self) -> Iterator[Block]:
        """The blocks in the order of the computation; a shared one comes several times."""
        for number in range(self.model.layers):
            block = self.blocks[number % len(self.blocks)]
            assert isinstance(block, Block)
            yield block

    def stack(
        self,
        x_TW: Tensor,
        segments: Segments,
        turn: Rotation | None,
        select_M: Tensor | None = None,
    ) -> Tensor:
        """All blocks, the last one for the rows `select_M`; every `checkpoint_every`'th is computed
        again for the gradient."""
        for number, block in enumerate(self.each_block()):
            last = number == self.model.layers - 1
            inputs = (x_TW, segments, turn, select_M if last else None)
            again = self.checkpoint_every and number % self.checkpoint_every == 0
            x_TW = recomputed(block, *inputs) if again and self.training else block(*inputs)
        return x_TW

    def contextual(
        self,
        x_TW: Tensor,
        position_T: Tensor,
        segments: Segments,
        select_M: Tensor | None = None,
    ) -> Tensor:
        """What the blocks make of embedded rows, (T, W), or (M, W) of the rows `select_M`."""
        turn = self.turn(position_T)
        return self.final_norm(self.stack(x_TW, segments, turn, select_M))

    def forward(
        self,
        rows_TV: Tensor,
        position_T: Tensor,
        segments: Segments,
        select_M: Tensor | None = None,
    ) -> Any:
        """(T, V) -> (T, W), or (M, W) of the rows `select_M`, which spares the last block most of
        its work on the others; see the class for a classifier with a wide part."""
        if not self.wide:
            x_TW = self.embed(rows_TV, position_T)
            return self.contextual(x_TW, position_T, segments, select_M)
        x_TW, *answers = self.embedding(rows_TV, answers=True)
        x_TW = self.contextual(self.placed(x_TW, position_T), position_T, segments, select_M)
        return x_TW, *answers, position_T


def build_encoder(config: ModelConfig, memory: MemorySettings) -> Encoder:
    """The encoder of a model's backbone."""
    if config.model.backbone == "canine":
        from elemdist.canine import CanineEncoder  # here, as it is built on Encoder

        return CanineEncoder(config, memory)
    return Encoder(config, memory)


def window_of(config: ModelConfig, number: int) -> int:
    """The window of block `number`; 0: it attends to all of its segment."""
    every = config.model.global_every
    return 0 if every and number % every == 0 else config.model.window


class ScoredElementHead(Scored, ElementHead):
    """Each element by itself."""


class ScoredSlotDecoder(Scored, SlotDecoder):
    """Each element after those before it."""


def build_head(config: ModelConfig) -> nn.Module:
    """What stands on top of the encoder for a model's objective."""
    if config.objective == "classify":
        return Classifier(config)
    autoregressive = config.model.head == "autoregressive"
    return ScoredSlotDecoder(config) if autoregressive else ScoredElementHead(config)


class Model(nn.Module):
    """Encoder (or decoder) and head of one objective.

    ``forward`` gives, without `target_MV`, logits: (M, V, E) of the rows `select_M` for ``mlm`` and
    ``clm``, (S, L) for ``classify``. With `target_MV` it gives (nats_M, correct_M), see
    :func:`elemdist.heads.score`, and never holds the logits of all rows where tiles are set.

    Where ranks share sequences (``segments.share``), T, M and S are those of this rank: its rows,
    those of them that are selected, and the segments that belong to it, ``segments.own``.
    """

    def __init__(self, config: ModelConfig, memory: MemorySettings | None = None) -> None:
        super().__init__()
        self.config, self.memory = config, memory or MemorySettings()
        self.encoder = build_encoder(config, self.memory)
        self.head = build_head(config)
        self.apply(initialise)

    @torch.no_grad()
    def expect_labels(self, share_L: Tensor) -> None:
        """Starts the classifier at the labels' shares of the documents instead of at one half,
        which takes thousands of steps to unlearn where labels are rare."""
        assert isinstance(self.head, Classifier)
        hinge = self.config.loss == "squared_hinge"
        logit_L = share_L.clamp(1e-4, 1 - 1e-4).logit()
        self.head.labels.bias.copy_(2 * share_L - 1 if hinge else logit_L)

    @torch.no_grad()
    def expect_elements(self, rows_NV: Tensor) -> None:
        """Starts the predictions at how often each element, or a material's end, stands in each
        slot of `rows_NV` instead of at 1 in 256, which takes hundreds of steps to learn."""
        bias_VE = self.head.bias_VE
        if self.config.symbols is None:
            rows_NV = rows_NV[rows_NV[:, 0] < FIRST_SPECIAL]
        open_N = torch.ones(len(rows_NV), dtype=torch.bool)  # behind the end nothing is predicted
        assert isinstance(bias_VE, Tensor)
        for element_N, bias_E in zip(rows_NV.T.contiguous(), bias_VE, strict=True):
            seen_E = element_N[open_N].int().bincount(minlength=len(bias_E)) + 1
            bias_E.copy_((seen_E / seen_E.sum()).log())
            open_N &= element_N != PAD

    def expect_materials(self, rows_NV: Tensor) -> None:
        """Starts the mixing layer, where there is one, at the most frequent materials of `rows_NV`,
        a unit for each. It tells words apart from the first step on; random units learn to in
        thousands of steps, and the rare words never."""
        embedding = self.encoder.embedding
        if isinstance(embedding, ElementwiseEmbedding) and self.config.model.ablation.mixing:
            embedding.answer_to(rows_NV)

    @torch.no_grad()
    def expect_documents(self, batches: Iterable[Batch]) -> None:
        """Starts the wide part's scales at how many of these documents have each material."""
        assert isinstance(self.head, Classifier)
        assert self.head.wide is not None
        wide, documents = self.head.wide, 0
        seen_K = torch.zeros_like(wide.counts.weight)
        for batch in batches:
            _, answer_UK, place_T = self.encoder.embedding(batch.rows_TV, answers=True)
            logs_SK = wide.counts.logs(batch.segments, answer_UK, place_T, batch.position_T)
            # One that is only alike counts by how much it is, and no document more than once.
            seen_K += logs_SK.expm1().clamp(max=1).sum(0)
            documents += len(logs_SK)
        wide.expect(seen_K, documents)

    @property
    def table(self) -> Tensor | None:
        """The embedding's table, where the predictions are tied to it."""
        if not self.config.tied:
            return None
        table = self.encoder.embedding.table
        assert isinstance(table, Tensor)
        return table

    def compile_blocks(self) -> None:
        """Compile what each block does row by row: all but its attention, whose segments are
        others in every batch, and tiles, whose gradient is a loop."""
        for block in self.modules():
            if isinstance(block, Block):
                if block.tile_rows:
                    block.tiled_feed = torch.compiler.disable(block.tiled_feed)  # type: ignore
                block.finish = torch.compile(block.finish, dynamic=True)  # type: ignore

    def forward(
        self,
        rows_TV: Tensor,
        position_T: Tensor,
        segments: Segments,
        select_M: Tensor | None = None,
        target_MV: Tensor | None = None,
    ) -> Tensor | Scores:
        """See the class."""
        if self.config.objective == "classify":
            select_P = pooled_rows(segments, self.config.pooling)
            found = self.encoder(rows_TV, position_T, segments, select_P)
            x, *materials = found if self.config.wide else (found,)
            return self.head(x, segments, *materials)
        # Only the rows that carry loss go through the last block's feed-forward and the head.
        x_MW = self.encoder(rows_TV, position_T, segments, select_M)
        if target_MV is None:
            return self.head(x_MW, self.table)
        return self.head(x_MW, self.table, target_MV, self.memory.tile_loss_rows)


def initialise(module: nn.Module) -> None:
    """N(0, 0.02) for tables, N(0, 2 / (5 W_in)) for matrices, zero for biases. The matrices'
    variance is BERT's at its width of 768 and keeps the scale of activations at other widths
    (Nguyen & Salazar 2019, arXiv 1910.05895)."""
    if isinstance(module, nn.Embedding):  # the positions
        # Ten times smaller than the elements: two short materials differ in one or two slots, a
        # small part of their vectors, which positions of the same size would drown.
        nn.init.normal_(module.weight, std=0.002)
    if isinstance(module, (nn.Linear, nn.Conv1d)):
        inputs = module.weight[0].numel()
        nn.init.normal_(module.weight, std=(2 / (5 * inputs)) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def parameter_groups(
    model: nn.Module, weight_decay: float, wide_l2: float = 0.0
) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and the element table (which every material uses) do not. A
    wide part's weights are part of the loss instead, as those of a linear model are: with decoupled
    decay they come to fit every document. `lr_ratio`: of a group's learning rate to the run's."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    wide = [module.weight for module in model.modules() if isinstance(module, Wide)]
    for name, parameter in model.named_parameters():
        if any(parameter is weight for weight in wide):
            continue
        plain_one = parameter.ndim < 2 or name.endswith((".table", ".tables", "bias_VE"))
        (plain if plain_one else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "lr_ratio": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_ratio": 1.0},
        *(
            {
                "params": [weight],
                "weight_decay": wide_l2 / len(weight),  # as the loss is a mean over labels
                "decoupled_weight_decay": False,
                "lr_ratio": Wide.LR_RATIO,
            }
            for weight in wide
        ),
    ]
