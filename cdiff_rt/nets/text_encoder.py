"""The text encoder: a pre-norm transformer over word pieces (x_transformers' Encoder behind BERT tokens)."""

from dataclasses import dataclass

from torch import Tensor, nn

from cdiff_rt.nets.attention import Attention


@dataclass(frozen=True)
class TextEncoderConfig:
    vocabulary: int
    tokens: int
    width: int
    layers: int
    heads: int
    head_width: int


class SelfAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, self.to_k(x), self.to_v(x))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        project_in = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.net = nn.Sequential(project_in, nn.Dropout(0.0), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PositionalEmbedding(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(tokens, width)


class Layers(nn.Module):
    """`layers` holds, in turn, attention and feed-forward, each as (LayerNorm, function)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        inner = config.heads * config.head_width
        for _ in range(config.layers):
            attention = SelfAttention(
                config.width,
                config.width,
                heads=config.heads,
                width=config.head_width,
                padded=config.head_width,
                out=nn.Linear(inner, config.width),
            )
            for function in (attention, FeedForward(config.width)):
                self.layers.append(nn.ModuleList([nn.LayerNorm(config.width), function]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer[1](layer[0](x))  # type: ignore[index]
        return x


class Transformer(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(config.vocabulary, config.width)
        self.pos_emb = PositionalEmbedding(config.tokens, config.width)
        self.attn_layers = Layers(config)
        self.norm = nn.LayerNorm(config.width)


class TextEncoder(nn.Module):
    """ids [B, tokens] int64, padded -> [B, tokens, width]. Padding attends and is attended to."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.transformer = Transformer(config)

    def forward(self, ids: Tensor) -> Tensor:
        net = self.transformer
        x = net.token_emb(ids) + net.pos_emb.emb.weight
        return net.norm(net.attn_layers(x))
