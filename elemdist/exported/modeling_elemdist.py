"""Elementwise transformers (Kim & Kim 2023, arXiv 2302.13475) for the transformers library.

The vector of a position, say a word, is the embeddings of its UTF-8 bytes side by side, out of one
table of 256 rows. Behind that stands an encoder or a decoder as usual.

Shape suffixes: see blocks_elemdist.py; M materials of a batch, E values of a byte (256), L labels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
)

from .blocks_elemdist import Block, ElementwiseEmbedding, allowed, layer_norm, rotation
from .canine_elemdist import DownSampling, HashEmbedding, UpSampling, molecule_mask
from .configuration_elemdist import ElemdistConfig
from .heads_elemdist import (
    IGNORED,
    PAD,
    Classifier,
    ElementHead,
    SlotDecoder,
    element_labels,
    element_loss,
    share_of_step,
)

SETTLED = ("return_dict", "use_cache")  # these change nothing here, whatever they are


class ElemdistPreTrainedModel(PreTrainedModel):
    """What all of these have in common."""

    config_class = ElemdistConfig
    base_model_prefix = "elemdist"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # Trainer's num_items_in_batch, see share_of_step

    def __init__(self, config: ElemdistConfig, **options: Any) -> None:
        super().__init__(config, **options)
        # Trainer then counts all labels: their last axis is no sequence, to be shifted.
        self.loss_type = None

    def _init_weights(self, module: nn.Module) -> None:
        """Of what a file does not hold, such as a new classifier's labels."""
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.LayerNorm):
                nn.init.constant_(parameter, float(name == "weight"))
            elif parameter.ndim < 2:
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)


class ElemdistModel(ElemdistPreTrainedModel):
    """The encoder, or decoder: text as the tokenizer gives it to a vector of each position."""

    def __init__(self, config: ElemdistConfig) -> None:
        super().__init__(config)
        width, embedded, pre = config.width, config.embedded, config.norm == "pre"
        canine = config.input == "canine"
        self.embedding = HashEmbedding(config) if canine else ElementwiseEmbedding(config)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_positions, embedded) if learned else None
        self.norm = layer_norm(embedded, config.biases)
        self.drop = nn.Dropout(config.dropout)
        self.widen = nn.Linear(embedded, width) if config.embedding_width else nn.Identity()
        self.blocks = nn.ModuleList(
            self.block() for _ in range(1 if config.backbone == "albert" else config.layers)
        )
        self.final_norm = layer_norm(width, config.biases) if pre else nn.Identity()
        if config.backbone == "canine":
            self.local, self.last = self.block(), self.block()
            self.down, self.up = DownSampling(config), UpSampling(config)
            self.local_norm = layer_norm(width, config.biases) if pre else nn.Identity()
            self.deep_norm = layer_norm(width, config.biases) if pre else nn.Identity()
        self.post_init()

    def block(self) -> Block:
        """A block of the stack."""
        config = self.config
        return Block(
            *(config.width, config.heads, config.feedforward),
            *(config.norm, config.activation, config.biases, config.dropout),
        )

    def turn(self, count: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """The rotation of the first `count` positions; None where they are learned."""
        config = self.config
        if config.positions == "learned":
            return None
        places = torch.arange(count, device=device)
        return rotation(places, config.width // config.heads, config.rotary_base)

    def mask(self, input_ids: Tensor) -> Tensor:
        """Where there is text, (B, N) bool."""
        first_BN = input_ids if input_ids.ndim == 2 else input_ids[..., 0]
        return first_BN.ne(self.config.pad_token_id)

    def embed(self, input_ids: Tensor) -> Tensor:
        """What goes into the first block, (B, N, W)."""
        input = self.config.input
        x_BNW = self.embedding(input_ids.unsqueeze(-1) if input == "byte" else input_ids)
        if self.positions is not None:
            x_BNW = x_BNW + self.positions.weight[: x_BNW.shape[1]]
        return self.widen(self.drop(self.norm(x_BNW)))

    def stack(self, x_BNW: Tensor, mask_BN: Tensor) -> Tensor:
        """All blocks; a shared one comes several times."""
        config = self.config
        causal, every = config.backbone == "decoder", config.global_every
        turn = self.turn(x_BNW.shape[1], x_BNW.device)
        for number in range(config.layers):
            window = 0 if every and number % every == 0 else config.window
            block = self.blocks[number % len(self.blocks)]
            x_BNW = block(x_BNW, allowed(mask_BN, window, causal), turn)
        return x_BNW

    def through_molecules(self, x_BNW: Tensor, mask_BN: Tensor) -> Tensor:
        """CANINE's way (arXiv 2103.06874): the blocks see one vector for several positions."""
        config = self.config
        turn = self.turn(x_BNW.shape[1], x_BNW.device)
        near = allowed(mask_BN, chunk=config.canine["local"])
        x_BNW = self.local_norm(self.local(x_BNW, near, turn))
        deep_BMW = self.stack(self.down(x_BNW), molecule_mask(mask_BN, config.canine["rate"]))
        x_BNW = self.up(x_BNW, self.deep_norm(deep_BMW), mask_BN)
        return self.last(x_BNW, allowed(mask_BN, config.window), turn)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> BaseModelOutput:
        """Args:
            input_ids: (B, N, V) int64 bytes; of input byte (B, N), of input canine (B, N) code
                points. attention_mask: (B, N), 0 where there is padding, by default where
                `input_ids` say so; padding is at the end.

        Raises:
            ValueError: a sequence has more positions than there are, or `options` ask for what
                this model does not do.
        """
        refuse(options)
        most = self.config.max_positions
        if most and input_ids.shape[1] > most:
            raise ValueError(f"{input_ids.shape[1]} positions; this model has {most}")
        mask_BN = self.mask(input_ids) if attention_mask is None else attention_mask.bool()
        x_BNW = self.embed(input_ids)
        canine = self.config.backbone == "canine"
        x_BNW = self.through_molecules(x_BNW, mask_BN) if canine else self.stack(x_BNW, mask_BN)
        return BaseModelOutput(last_hidden_state=self.final_norm(x_BNW))


def refuse(options: dict[str, Any]) -> None:
    """Raise ValueError on options of a forward pass that ask for what these models do not do."""
    asked = [name for name, value in options.items() if value is not None and value is not False]
    if unknown := sorted(set(asked) - set(SETTLED)):
        raise ValueError(
            f"forward: {', '.join(unknown)}: an elementwise transformer has no such option; leave"
            " it out"
        )


class ElementPrediction(ElemdistPreTrainedModel):
    """Materials out of their vectors; the base of the two below.

    Without `labels`, a head that predicts a material byte by byte takes the likeliest byte each
    time, and its logits are those on that way.
    """

    head_name = ""  # each class has its own: a file of one gives another no weights by accident
    shift = 0  # position k predicts the labels of k + shift

    def __init__(self, config: ElemdistConfig) -> None:
        super().__init__(config)
        self.elemdist = ElemdistModel(config)
        head = SlotDecoder(config) if config.head == "autoregressive" else ElementHead(config)
        setattr(self, self.head_name, head)
        self.post_init()

    @property
    def head(self) -> ElementHead | SlotDecoder:
        """The predictions."""
        return getattr(self, self.head_name)

    def predicted(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        items: Tensor | int | None,
        options: dict[str, Any],
    ) -> tuple[Tensor | None, Tensor]:
        """Return (loss, logits (B, N, V, E)); without labels the loss is None."""
        x_BNW = self.elemdist(input_ids, attention_mask, **options).last_hidden_state
        table = self.elemdist.embedding.table if self.config.tied else None
        if labels is None:
            return None, self.head(x_BNW, table, None)
        mask_BN = self.elemdist.mask(input_ids) if attention_mask is None else attention_mask.bool()
        target_BNV = element_labels(labels, self.config, mask_BN)
        if self.shift:
            target_BNV = F.pad(target_BNV[:, self.shift :], (0, 0, 0, self.shift), value=IGNORED)
        logits_BNVE = self.head(x_BNW, table, target_BNV.where(target_BNV != IGNORED, PAD))
        loss = element_loss(logits_BNVE, target_BNV)
        return share_of_step(loss, labels, items), logits_BNVE


class ElemdistForMaskedLM(ElementPrediction):
    """Hidden materials out of those around them. `labels` (B, N, V): their bytes, else -100; of
    input byte and canine also (B, N), as `input_ids` are."""

    head_name = "mlm_head"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> MaskedLMOutput:
        """Return the logits, (B, N, V, E); with `labels` the loss, too."""
        found = self.predicted(input_ids, attention_mask, labels, num_items_in_batch, options)
        return MaskedLMOutput(loss=found[0], logits=found[1])


class ElemdistForCausalLM(ElementPrediction):
    """The next material out of those before it. `labels` (B, N, V): mostly `input_ids`."""

    head_name, shift = "clm_head", 1

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> CausalLMOutput:
        """Return the logits, (B, N, V, E); with `labels` the loss, too."""
        found = self.predicted(input_ids, attention_mask, labels, num_items_in_batch, options)
        return CausalLMOutput(loss=found[0], logits=found[1])


class ElemdistForSequenceClassification(ElemdistPreTrainedModel):
    """Labels of text, any number of them at once. `labels`: (B, L), 0 or 1."""

    def __init__(self, config: ElemdistConfig) -> None:
        super().__init__(config)
        self.elemdist = ElemdistModel(config)
        self.classifier = Classifier(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> SequenceClassifierOutput:
        """Return the logits, (B, L); with `labels` the loss, too."""
        x_BNW = self.elemdist(input_ids, attention_mask, **options).last_hidden_state
        if attention_mask is None:
            attention_mask = self.elemdist.mask(input_ids)
        embedding, answer_BNK = self.elemdist.embedding, None
        if self.config.wide:
            assert isinstance(embedding, ElementwiseEmbedding)
            answer_BNK = embedding.answers(input_ids)
        logits_BL = self.classifier(x_BNW, attention_mask, answer_BNK)
        loss = None
        if labels is not None:
            loss = F.binary_cross_entropy_with_logits(logits_BL.float(), labels.float())
            loss = share_of_step(loss, labels, num_items_in_batch)
        return SequenceClassifierOutput(loss=loss, logits=logits_BL)
