import torch

from frontier_tune.algorithms import kl


def test_expectations_under_q_match_the_closed_form() -> None:
    """Summed over a whole categorical with weights q, k1 and k3 are the KL itself; k2 is close to it for near policies."""
    g = torch.Generator().manual_seed(0)
    logq = torch.randn(50, generator=g, dtype=torch.float64).log_softmax(0)
    logp = (logq + 0.05 * torch.randn(50, generator=g, dtype=torch.float64)).log_softmax(0)
    exact = torch.nn.functional.kl_div(logp, logq, log_target=True, reduction="sum")
    q = logq.exp()
    torch.testing.assert_close((q * kl.k1(logq, logp)).sum(), exact, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((q * kl.k3(logq, logp)).sum(), exact, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((q * kl.k2(logq, logp)).sum(), exact, rtol=0.1, atol=0)


def test_never_negative_and_zero_at_equality() -> None:
    g = torch.Generator().manual_seed(1)
    logq, logp = torch.randn(2, 1000, generator=g, dtype=torch.float64)
    assert (kl.k2(logq, logp) >= 0).all() and (kl.k3(logq, logp) >= 0).all()
    assert all((k(logq, logq) == 0).all() for k in (kl.k1, kl.k2, kl.k3))


def test_k3_keeps_its_digits_for_nearly_equal_policies() -> None:
    """exp(x) - 1 - x cancels to noise at x = 1e-8; the true value is x^2 / 2."""
    logq = torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(kl.k3(logq, logq + 1e-4), torch.tensor([5.0001666e-9], dtype=torch.float64), rtol=1e-6, atol=0)
