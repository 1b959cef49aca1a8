"""Writes docs/beta.svg: how strong JSD_β is beside the full KL, by vltool's own loss.

Teacher and student are random distributions over 1,000 tokens, so many nats apart.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vltool.training.losses import distillation_loss

OUT = Path(__file__).parents[1] / "docs" / "beta.svg"
APART = {0.01: "#1f77b4", 1.0: "#d62728"}
"""KL(teacher‖student) in nats -> colour of its curve."""
BETAS = [0.002, *(step / 100 for step in range(1, 100)), 0.998]
WIDTH, HEIGHT, LEFT, TOP = 640, 360, 70, 20
ROWS, VOCABULARY = 64, 1000


def divergence(teacher_NV: torch.Tensor, student_NV: torch.Tensor, beta: float) -> float:
    """JSD_β a position of two tables of logits: with the identity for a head, hidden states are logits."""
    labels = torch.zeros(len(teacher_NV), dtype=torch.int64)
    head = torch.eye(VOCABULARY, dtype=torch.float64)
    teacher = {"teacher_hidden_NH": teacher_NV, "teacher_head_VH": head}
    return float(distillation_loss(student_NV, labels, head, **teacher, beta=beta).kd_sum) / len(labels)


def pair(nats: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a teacher, and of a student that is `nats` away from it."""
    generator = torch.Generator().manual_seed(0)
    teacher_NV = 3 * torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64)
    noise_NV = torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64)
    low, high = 0.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        nearer = divergence(teacher_NV, teacher_NV + middle * noise_NV, 0.0) < nats
        low, high = (middle, high) if nearer else (low, middle)
    return teacher_NV, teacher_NV + low * noise_NV


def x(beta: float) -> float:
    """Pixels from the left."""
    return LEFT + beta * (WIDTH - LEFT - 20)


def y(share: float) -> float:
    """Pixels from the top."""
    return TOP + (1.1 - share) / 1.1 * (HEIGHT - TOP - 50)


def main() -> None:
    """Draw."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for tick in range(0, 11, 2):
        value = tick / 10
        parts += [
            f'<path d="M{x(0):.0f} {y(value):.1f}H{x(1):.0f}" stroke="#ddd"/>',
            f'<text x="{x(0) - 14:.0f}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.0%}</text>',
            f'<text x="{x(value):.1f}" y="{y(0) + 20:.1f}" text-anchor="middle">{value:g}</text>',
        ]
    parts += [
        f'<text x="{x(0.5):.1f}" y="{HEIGHT - 8}" text-anchor="middle">β</text>',
        f'<text x="16" y="{y(0.5):.0f}" text-anchor="middle" transform="rotate(-90 16 {y(0.5):.0f})">'
        "share of the full forward KL</text>",
    ]
    for row, (nats, colour) in enumerate(APART.items()):
        teacher_NV, student_NV = pair(nats)
        full = divergence(teacher_NV, student_NV, 0.0)
        points = [(x(beta), y(divergence(teacher_NV, student_NV, beta) / full)) for beta in BETAS]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for beta in (0.0, 1.0):
            at = y(divergence(teacher_NV, student_NV, beta) / full)
            parts.append(f'<circle cx="{x(beta):.1f}" cy="{at:.1f}" r="4" fill="{colour}"/>')
        height = y(0.84) + 20 * row
        parts += [
            f'<path d="M{x(0.3):.0f} {height - 4:.1f}h24" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{x(0.3) + 32:.0f}" y="{height:.1f}">student {nats:g} nats a token from its teacher</text>',
        ]
    text_y = y(0.84) + 40
    parts += [
        f'<circle cx="{x(0.3) + 12:.0f}" cy="{text_y - 4:.1f}" r="4" fill="#555"/>',
        f'<text x="{x(0.3) + 32:.0f}" y="{text_y:.1f}">β exactly 0 or 1: the full forward or reverse KL</text>',
        "</svg>",
    ]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
