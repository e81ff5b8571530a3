"""Label-smoothed cross-entropy (arXiv:1706.03762, section 5.4) without a copy too many."""

import math

import torch
from torch import Tensor


class LinearCrossEntropy(torch.autograd.Function):
    """Sums over M tokens, with scores z = x W^T + b of the V tokens that might be there:

    loss      -sum_v q_v log p_v, where p = softmax(z) and q_v = (1 - eps) [v = label] + eps / V
              = lse(z) - (1 - eps) z_label - eps mean(z)
    nll       -log p_label, the same with eps = 0
    correct   how many labels have the best score; a tie (bf16 has them) is half a hit

    x (M, d), W (V, d), b (V,) or None, labels (M,). Written out because the (M, V) scores are most
    of a small model's memory traffic: one buffer, in the matrix product's own precision, is in turn
    the scores, their exponentials and their gradient. What is the same for all V never touches it:
    mean(z) is x . mean(W) + mean(b).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, eps: float):
        device = x.device.type
        at_label = torch.arange(len(labels), device=x.device), labels
        if torch.is_autocast_enabled(device):
            narrow = torch.get_autocast_dtype(device)
            x, weight = x.to(narrow), weight.to(narrow)
            bias = None if bias is None else bias.to(narrow)
        with torch.autocast(device, enabled=False):
            z = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())  # (M, V)
            wide = torch.promote_types(z.dtype, torch.float32)
            own = z[at_label]  # (M,)
            z[at_label] = -math.inf
            rival = z.amax(-1)
            best = torch.maximum(own, rival)
            exp = z.sub_(best[:, None]).exp_()  # 0 at the label
            others = exp.sum(-1)
            total = others.to(wide) + (own - best).to(wide).exp()
            nll = total.log() + (best - own)
            mean_weight = weight.mean(0, dtype=wide)
            mean = x.to(wide) @ mean_weight + (0 if bias is None else bias.mean(dtype=wide))
            loss = nll + eps * (own - mean)
            correct = ((own > rival).float() + (own >= rival).float()).sum() / 2
            # d loss / d z = p - q = exp / total - eps / V, but at the label less 1 - eps
            exp[at_label] = eps * total.to(exp.dtype) - others
        ctx.save_for_backward(x, weight, bias, exp, total, mean_weight)
        ctx.eps = eps
        nll = nll.sum()
        ctx.mark_non_differentiable(nll, correct)
        return loss.sum(), nll, correct

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        x, weight, bias, grad_z, total, mean_weight = ctx.saved_tensors
        (M, V), smooth = grad_z.shape, ctx.eps * grad
        with torch.autocast(x.device.type, enabled=False):
            scale = grad / total[:, None]  # (M, 1)
            grad_x = (grad_z @ weight) * scale - smooth * mean_weight
            grad_weight = grad_z.t() @ (x * scale).to(x.dtype)
            grad_weight -= smooth / V * x.sum(0)
            if bias is None:
                return grad_x, grad_weight, None, None, None
            grad_bias = (grad_z.t() @ scale.to(x.dtype)).squeeze(1) - smooth * M / V
        return grad_x, grad_weight, grad_bias, None, None
