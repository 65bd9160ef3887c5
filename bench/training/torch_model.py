"""A plain LLaMA in torch, whose weights are named as Hugging Face names them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llama_jax.config import Config


class _Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.n_heads, c.n_kv_heads, c.head_dim
        self.q_proj = nn.Linear(c.dim, c.n_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.dim, c.n_kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.dim, c.n_kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.n_heads * c.head_dim, c.dim, bias=False)

    def forward(self, x: Any, cos: Any, sin: Any) -> Any:
        batch, time, _ = x.shape
        q = self.q_proj(x).view(batch, time, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, time, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, time, self.kv_heads, self.head_dim).transpose(1, 2)
        shared = {"enable_gqa": True} if self.heads != self.kv_heads else {}
        out = F.scaled_dot_product_attention(
            _rotated(q, cos, sin), _rotated(k, cos, sin), v, is_causal=True, **shared
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch, time, -1))


class _FeedForward(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.dim, c.hidden_dim, bias=False)
        self.up_proj = nn.Linear(c.dim, c.hidden_dim, bias=False)
        self.down_proj = nn.Linear(c.hidden_dim, c.dim, bias=False)

    def forward(self, x: Any) -> Any:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.self_attn = _Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.mlp = _FeedForward(c)

    def forward(self, x: Any, cos: Any, sin: Any) -> Any:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Trunk(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.dim)
        self.layers = nn.ModuleList(_Layer(c) for _ in range(c.n_layers))
        self.norm = nn.RMSNorm(c.dim, eps=c.norm_eps)


class Llama(nn.Module):
    """Token ids [batch, time] to logits; its output layer is its embedding."""

    def __init__(self, c: Config, time: int) -> None:
        super().__init__()
        self.model = _Trunk(c)
        inverse = c.rope_theta ** (
            -torch.arange(0, c.head_dim, 2, dtype=torch.float32) / c.head_dim
        )
        angles = torch.outer(torch.arange(time, dtype=torch.float32), inverse)
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Any) -> Any:
        x, time = self.model.embed_tokens(tokens), tokens.shape[1]
        for layer in self.model.layers:
            x = layer(x, self.cos[:time], self.sin[:time])
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


def _rotated(x: Any, cos: Any, sin: Any) -> Any:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin
