"""Explains a model of Hugging Face's transformers: VisualBERT, whose words and image regions meet in its first layer.

Random weights, so that nothing is downloaded; yours come from `VisualBertForQuestionAnswering.from_pretrained(...)`.
"""

import torch
from transformers import VisualBertConfig, VisualBertForQuestionAnswering

from amr.attribution import attribution_shares
from amr.datamodules.atoms import Kind
from amr.multiviz.adapters import early_fusion
from amr.multiviz.unimodal import lime

config = VisualBertConfig(vocab_size=50, hidden_size=24, visual_embedding_dim=16, num_hidden_layers=2, num_labels=3)
model = early_fusion(
    VisualBertForQuestionAnswering(config),
    {"text": "input_ids", "regions": "visual_embeds"},
    masks={"text": "attention_mask", "regions": "visual_attention_mask"},
)
clips = {"text": torch.randint(2, 50, (8, 6)), "regions": torch.randn(8, 4, 16)}
print("shares:", attribution_shares(model.head, model.encode(clips)).mean(0).tolist())
words = Kind("tokens", vocabulary="ids").atoms(clips["text"])
print("importance of each word:", lime(model, clips, "text", "predicted", words, samples=64).values.tolist())
