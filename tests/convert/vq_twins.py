"""The published VQ autoencoders in PyTorch, small, under both kinds of names.

Weights are drawn when they are first used, so one pass through the network
makes its state dict.
"""

import numpy as np
import torch
from torch.nn import functional as F

BLOCKS = 2


class Twin:
  """One network.

  Attributes:
    is_llamagen: in names and length of its codes. z_channels: of the features.
    has_attention: in the deepest levels. widths: of the levels.
    codes, dim: how many code vectors of how many numbers.
  """

  def __init__(
    self,
    names: str,
    z_channels: int,
    has_attention: bool = True,
    widths: tuple[int, ...] = (32, 64),
    codes: int = 40,
    dim: int = 4,
  ):
    """`names`: "ldm" or "llamagen"."""
    self.is_llamagen, self.z_channels = names == "llamagen", z_channels
    self.has_attention, self.widths = has_attention, widths
    self.codes, self.dim = codes, dim
    self.weights, self._random = {}, np.random.default_rng(0)
    with torch.no_grad():
      self.decode(self.ids(self.z(torch.zeros(1, 3, 16, 16))))

  def z(self, images):
    """Images [B, 3, H, W] to what is quantised, before any normalisation."""
    last = len(self.widths) - 1
    h = self._conv("encoder.conv_in", images, self.widths[0])
    for i, width in enumerate(self.widths):
      for j in range(BLOCKS):
        h = self._block(self._part("encoder", i, "block", j), h, width)
        if self.has_attention and i == last:
          h = self._attention(self._part("encoder", i, "attn", j), h)
      if i < last:
        name = self._level("encoder", i) + ".downsample.conv"
        h = self._conv(name, F.pad(h, (0, 1, 0, 1)), width, stride=2, pad=0)
    h = self._middle("encoder", h)
    h = F.silu(self._norm("encoder.norm_out", h))
    h = self._conv("encoder.conv_out", h, self.z_channels)
    return self._conv("quant_conv", h, self.dim, 1)

  def ids(self, z):
    """[B, H, W] of z."""
    z = z.permute(0, 2, 3, 1)
    if self.is_llamagen:
      z = F.normalize(z, dim=-1)
    far = torch.cdist(z.reshape(-1, self.dim).double(), self._codes().double())
    return far.argmin(dim=1).reshape(z.shape[:3])

  def decode(self, ids):
    """Ids [B, H, W] to images [B, 3, H, W]."""
    last = len(self.widths) - 1
    h = self._codes()[ids].permute(0, 3, 1, 2)
    h = self._conv("post_quant_conv", h, self.z_channels, 1)
    h = self._conv("decoder.conv_in", h, self.widths[-1])
    h = self._middle("decoder", h)
    for i in reversed(range(last + 1)):
      for j in range(BLOCKS + 1):
        name = self._part("decoder", i, "block", j)
        h = self._block(name, h, self.widths[i])
        if self.has_attention and i == last:
          h = self._attention(self._part("decoder", i, "attn", j), h)
      if i:
        h = F.interpolate(h, scale_factor=2.0, mode="nearest")
        name = self._level("decoder", i) + ".upsample.conv"
        h = self._conv(name, h, self.widths[i])
    h = F.silu(self._norm("decoder.norm_out", h))
    return self._conv("decoder.conv_out", h, 3)

  def state_dict(self) -> dict[str, np.ndarray]:
    """With what training leaves in such files, too."""
    extra = {"loss.logvar": np.zeros((), np.float32)}
    if self.is_llamagen:
      extra = {"quantize.codebook_used": np.zeros(65536, np.float32)}
    ours = {name: array.numpy() for name, array in self.weights.items()}
    return ours | extra

  def _level(self, half, i):
    if self.is_llamagen:
      place = i if half == "encoder" else len(self.widths) - 1 - i
      return f"{half}.conv_blocks.{place}"
    return f"{half}.{'down' if half == 'encoder' else 'up'}.{i}"

  def _part(self, half, i, part, j):
    if self.is_llamagen and part == "block":
      part = "res"
    return f"{self._level(half, i)}.{part}.{j}"

  def _middle(self, half, h):
    names = ("block_1", "attn_1", "block_2")
    if self.is_llamagen:
      names = "012"
    h = self._block(f"{half}.mid.{names[0]}", h, h.shape[1])
    h = self._attention(f"{half}.mid.{names[1]}", h)
    return self._block(f"{half}.mid.{names[2]}", h, h.shape[1])

  def _drawn(self, name, *shape, scale=1.0, mean=0.0):
    if name not in self.weights:
      drawn = mean + scale * self._random.standard_normal(shape)
      self.weights[name] = torch.from_numpy(np.float32(drawn))
    return self.weights[name]

  def _codes(self):
    codes = self._drawn("quantize.embedding.weight", self.codes, self.dim)
    return F.normalize(codes, dim=-1) if self.is_llamagen else codes

  def _conv(self, name, x, width, size=3, stride=1, pad=None):
    inputs = x.shape[1]
    scale = (inputs * size * size) ** -0.5
    kernel = self._drawn(
      f"{name}.weight", width, inputs, size, size, scale=scale
    )
    bias = self._drawn(f"{name}.bias", width, scale=0.1)
    pad = size // 2 if pad is None else pad
    return F.conv2d(x, kernel, bias, stride=stride, padding=pad)

  def _norm(self, name, x):
    width = x.shape[1]
    scale = self._drawn(f"{name}.weight", width, scale=0.1, mean=1.0)
    bias = self._drawn(f"{name}.bias", width, scale=0.1)
    return F.group_norm(x, 32, scale, bias, eps=1e-6)

  def _block(self, name, x, width):
    h = self._conv(
      f"{name}.conv1", F.silu(self._norm(f"{name}.norm1", x)), width
    )
    h = self._conv(
      f"{name}.conv2", F.silu(self._norm(f"{name}.norm2", h)), width
    )
    if x.shape[1] != width:
      x = self._conv(f"{name}.nin_shortcut", x, width, 1)
    return x + h

  def _attention(self, name, x):
    width = x.shape[1]
    h = self._norm(f"{name}.norm", x)
    q, k, v = (
      self._conv(f"{name}.{part}", h, width, 1).flatten(2) for part in "qkv"
    )
    weights = torch.softmax(q.transpose(1, 2) @ k * width**-0.5, dim=-1)
    mixed = (v @ weights.transpose(1, 2)).reshape(x.shape)
    return x + self._conv(f"{name}.proj_out", mixed, width, 1)
