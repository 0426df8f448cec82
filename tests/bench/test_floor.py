import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module

from cdiff_rt.bench.floor import GPUS, Gpu, Work, counted, find_gpu
from cdiff_rt.errors import BadRequest
from tests.command_line import check_refused
from tests.command_line import run as run_command

GPU = Gpu(bandwidth=100.0, arithmetic=1000.0, multiprocessors=1, clock=1.0)


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(8, 8, bias=False)
        self.conv = nn.Conv1d(1, 4, 3)
        self.act = nn.SiLU()

    def forward(self, x):
        x = F.softmax(self.twice(self.twice(x)), dim=1)
        return self.act(self.conv(x[:, None]))


@pytest.fixture
def floor():
    with torch.device("meta"), torch.inference_mode():
        toy = Toy()
        with counted(toy) as found:
            toy(torch.zeros(2, 8))
    return found


def test_layers_are_counted_by_hand(floor):
    assert floor.layers["twice"] == Work(weights=2 * 64, flops=2 * (2 * 2 * 8 * 8))  # read once, multiplied twice
    assert floor.layers["conv"] == Work(weights=2 * (12 + 4), flops=2 * 2 * 6 * 4 * 3)
    assert floor.layers["act"] == Work(exponentials=2 * 4 * 6)
    assert floor.layers[""] == Work(exponentials=2 * 8)  # the softmax, which is in no layer of its own
    assert floor.total == Work(128 + 32, 512 + 288, 48 + 16)


def test_a_block_leaves_no_hook_behind(floor):
    assert not module._global_forward_pre_hooks and not module._global_forward_hooks


@pytest.mark.parametrize(
    ("work", "seconds"),
    [(Work(200, 1000, 16), 2.0), (Work(100, 3000, 16), 3.0), (Work(100, 1000, 64), 4.0), (Work(), 0.0)],
)
def test_what_takes_longest_is_the_floor(work, seconds):
    assert work.seconds(GPU) == seconds


@pytest.mark.parametrize("name", GPUS)
def test_peaks_are_those_of_whole_tensor_cores(name):
    """Their operations per multiprocessor and clock are a power of two."""
    gpu = GPUS[name]
    per_clock = gpu.arithmetic / gpu.multiprocessors / gpu.clock
    assert min(abs(per_clock / 2**n - 1) for n in range(9, 13)) < 5e-3


def test_an_unknown_gpu_is_refused_with_those_that_are_known():
    with pytest.raises(BadRequest, match="choose one of H200, H100"):
        find_gpu("B9000")
    check_refused(run_command("bench", "budget", "--gpu", "B9000"), 2, "B9000", "A100")


def test_the_published_model_takes_758_million_exponentials_in_its_attention():
    run = run_command("bench", "budget", "--model", "512", "--gpu", "A100")
    assert run.exit_code == 0, run.output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.output.splitlines() if "|" in line]
    attention = [float(row[4]) for row in rows if row[0].endswith("Attention")]
    assert len(attention) == 4 and round(sum(attention)) == 758
    total = next(row for row in rows if row[0].startswith("all, one"))
    assert float(total[3]) == pytest.approx(432.24) and "A100" in run.output
