"""Two gloo processes that share the anchors find the metric tensor of one."""

import torch
from safetensors.torch import load_file

from tests.testing_utils import run_processes


SCRIPT = """
from accelerate import Accelerator
from safetensors.torch import save_file

from hf_fip.geometry import MetricTensor
from hf_fip.geometry.spectrum import find_spectrum
from tests.testing_utils import classifier

accelerator = Accelerator(cpu=True)
model = accelerator.prepare(classifier(num_labels=3).double())
torch.manual_seed(0)
inputs = {"input_ids": torch.randint(3, 64, (7, 6)), "attention_mask": torch.ones(7, 6).long()}
results = {}
for metric in ("l2", "fisher"):
    g = MetricTensor(model, inputs, metric, chunk_size=2)
    v, u = torch.randn(g.shape[0], 2, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    found = {"outputs": g.outputs, "g": g @ v, "jvp": g.jvp(v), "vjp": g.vjp(u), "gram": g.gram()}
    found["rows of J"] = g.rows()
    found["values"] = torch.tensor(find_spectrum(g, 4, method="lanczos", probes=1, steps=4).eigenvalues)
    # Every process has the whole of each result.
    for name, value in found.items():
        every = accelerator.gather(value.unsqueeze(0).contiguous())
        torch.testing.assert_close(every, every[:1].expand_as(every), rtol=0.0, atol=0.0)
    # Work that one process does alone is not shared.
    if accelerator.is_main_process:
        alone = MetricTensor(model, inputs, metric, distributed=False)
        torch.testing.assert_close(alone @ v, found["g"], rtol=1e-9, atol=1e-11)
        found["rows"] = torch.tensor(sum(g._products.chunks[index].num_rows for index in g._products.share))
        results |= {f"{metric} {name}": value.contiguous() for name, value in found.items()}
if accelerator.is_main_process:
    save_file(results, sys.argv[1])
"""


def found(folder, processes: int) -> dict[str, torch.Tensor]:
    file = folder / f"{processes}.safetensors"
    run_processes(processes, folder / "run.py", SCRIPT, file)
    return load_file(file)


def test_two_processes_find_the_metric_of_one(tmp_path):
    one, two = found(tmp_path, 1), found(tmp_path, 2)
    for metric in ("l2", "fisher"):
        assert int(one.pop(f"{metric} rows")) == 7 and int(two.pop(f"{metric} rows")) in (3, 4)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
