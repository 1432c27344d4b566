"""The exported graph draws what the pipeline draws, for every kind of model and any number of images.

Its files are whole or not there."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cfvae.autoencoder import Autoencoder, AutoencoderConfig
from cfvae.core import CfvaeError, make_generator, seed_everything
from cfvae.guidance import Guidance
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.latents import LatentScaler
from cfvae.onnx_export import (
    SamplingHalf,
    export_onnx,
    graph_inputs,
    round_weights,
    store_as_bytes,
    store_as_halves,
)
from cfvae.pipeline import LatentVAEPipeline

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZES = {
    "data_channels": 4,
    "resolutions": (1, 2),
    "widths": 8,
    "encoder_widths": 8,
    "multipliers": 2,
    "layers": (1, 2),
    "encoder_blocks": 1,
    "latent_channels": 2,
}


def build(classes=(), **sizes) -> LatentVAEPipeline:
    "A pipeline of random weights, all of them shaken, so that labels and priors matter."
    seed_everything(0)
    vae = HierarchicalVAE(HierarchicalVAEConfig(**SIZES | sizes, num_classes=len(classes)))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return LatentVAEPipeline(
        Autoencoder(AutoencoderConfig(size=8, widths=(8, 8), groups=4)),
        vae,
        LatentScaler([0.1, -0.2, 0.3, 0.0], [1.5, 0.5, 2.0, 1.0]),
        classes,
    )


class Exported:
    "A pipeline and the session of its graph, opened once."

    def __init__(self, pipe, folder):
        self.pipe, self.path = pipe, export_onnx(pipe, folder)
        self.about = json.loads(self.path.with_name("model.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.path, options)

    def __call__(self, eps, *wishes) -> torch.Tensor:
        inputs = graph_inputs(self.pipe, eps, *wishes)
        return torch.from_numpy(
            self.session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
        )


def reference(pipe, eps, labels=None, guidance=None, temperature=1.0) -> torch.Tensor:
    "What the pipeline draws."
    return pipe(labels, len(eps[0]), guidance, temperature, eps=eps, output_type="pt").images * 2 - 1


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    return Exported(
        build(("cat", "dog", "<owl> & co"), attention=(0, 1), heads=2),
        tmp_path_factory.mktemp("guided") / "new" / "folder",
    )


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(
    "wishes",
    [
        (),
        (0.7,),
        ("labels", None),
        ("labels", Guidance(2, 0)),
        ("labels", Guidance(0, 1.5)),
        ("labels", Guidance((3, -1), (0, 2)), 0.5),
        ("labels", Guidance(1, 1), (1.0, 0.0)),
    ],
    ids=["unconditional", "cooled", "plain", "means", "variances", "per resolution", "cooled above"],
)
def test_guided_graph_is_the_pipeline(guided, n, wishes):
    eps = guided.pipe.vae.noise(n, make_generator(n))
    labels = [i % 3 for i in range(n)] if wishes and wishes[0] == "labels" else None
    wishes = (labels, None, wishes[0]) if wishes and labels is None else (labels, *wishes[1:])
    assert (guided(eps, *wishes) - reference(guided.pipe, eps, *wishes)).abs().max() < 1e-4


def test_every_wish_matters(guided):
    eps = guided.pipe.vae.noise(2, make_generator(0))
    base = guided(eps, [0, 1], Guidance(1, 1))
    others = [
        guided(eps, [1, 0], Guidance(1, 1)),
        guided(eps, [0, 1], Guidance(2, 1)),
        guided(eps, [0, 1], Guidance(1, 2)),
        guided(eps, [0, 1], Guidance(1, 1), 0.5),
        guided(eps, [0, 1], Guidance(1, 1), (1.0, 0.0)),
        guided([*eps[:-1], torch.zeros_like(eps[-1])], [0, 1], Guidance(1, 1)),
        guided(eps[:-1] + [eps[-1].flip(0)], [0, 1], Guidance(1, 1)),
    ]
    assert all((other - base).abs().max() > 1e-3 for other in others)
    assert torch.equal(guided(eps, [0, 1], Guidance(1, 1)), base)  # nothing random is left inside


def test_description(guided):
    about = guided.about
    assert about["classes"] == ["cat", "dog", "<owl> & co"] and about["no_label"] == 3
    assert about["inputs"] == {
        "noise": ["batch", 2 + 8 + 8],
        "temperature": [2],
        "labels": ["batch"],
        "mean_weight": [2],
        "var_weight": [2],
    }
    assert (about["size"], about["latent_shape"], about["resolutions"], about["layers"]) == (
        8,
        [4, 2, 2],
        [1, 2],
        [1, 2],
    )
    assert (
        about["noise_shapes"] == [[2, 1, 1], [2, 2, 2], [2, 2, 2]]
        and about["precision"]["stored"] == "float32"
    )
    model = onnx.load(guided.path)
    assert about["opset"] == model.opset_import[0].version
    assert [i.name for i in model.graph.input] == list(about["inputs"]) and [
        o.name for o in model.graph.output
    ] == ["images"]
    content = guided.path.read_bytes()
    assert (
        b".py" not in content and b"stack_trace" not in content
    )  # the exporter would tell where the source lies on this machine
    assert {path.name for path in guided.path.parent.iterdir()} == {"model.onnx", "model.json"}


def test_encoder_is_left_out(guided):
    stored = sum(
        onnx.numpy_helper.to_array(weight).size for weight in onnx.load(guided.path).graph.initializer
    )
    vae = guided.pipe.vae
    unused = sum(
        p.numel() for part in (vae.encoder, guided.pipe.autoencoder.encoder) for p in part.parameters()
    )
    unused += sum(
        p.numel()
        for block in vae.decoder.blocks
        for part in (block.join, block.posterior_block)
        for p in part.parameters()
    )
    whole = sum(p.numel() for model in (vae, guided.pipe.autoencoder) for p in model.parameters())
    assert stored < whole - unused + 100  # the scaler and a few constants


@pytest.mark.parametrize(
    ("classes", "learned"), [((), True), (("cat", "dog"), False)], ids=["no classes", "unit prior"]
)
def test_without_guidance(tmp_path, classes, learned):
    exported = Exported(build(classes, learned_prior=learned, layers=1), tmp_path)
    assert list(exported.about["inputs"]) == ["noise", "temperature"] + ["labels"] * bool(classes)
    eps = exported.pipe.vae.noise(3, make_generator(1))
    labels = [1, 0, 1] if classes else None
    for temperature in (1.0, (0.5, 0.0)):
        expected = reference(exported.pipe, eps, labels, None, temperature)
        assert (exported(eps, labels, None, temperature) - expected).abs().max() < 1e-4
    with pytest.raises(CfvaeError, match="cannot be guided"):
        exported(eps, labels, Guidance(1, 0))


def graph_of(weights: np.ndarray):
    "y = x + weights."
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, weights.shape)] for name in "xy"
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
        "sum",
        inputs,
        outputs,
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(("extra", "fits"), [(0.5, True), (0.1, False), (1e6, False), (-65504.0, True)])
def test_halves_lose_nothing(extra, fits):
    weights = np.full(64, 0.25, np.float32)
    weights[-1] = extra
    model = graph_of(weights)
    assert store_as_halves(model) == 64 * fits
    onnx.checker.check_model(model, full_check=True)
    assert {w.data_type for w in model.graph.initializer} == {
        onnx.TensorProto.FLOAT16 if fits else onnx.TensorProto.FLOAT
    }
    summed = onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, {"x": np.zeros(64, np.float32)}
    )[0]
    assert np.array_equal(summed, weights)


def test_weights_are_rounded_by_output_channel():
    pipe = build(("cat", "dog"))
    with torch.no_grad():
        pipe.autoencoder.decoder[0].weight[1] = 0  # a channel without a step
    before = copy.deepcopy(pipe.vae.state_dict())
    rounded = round_weights(pipe)
    assert all(torch.equal(value, before[name]) for name, value in pipe.vae.state_dict().items())
    changed = 0
    for part in ("vae", "autoencoder"):
        full = dict(getattr(pipe, part).named_parameters())
        for name, weight in getattr(rounded, part).named_parameters():
            if weight.ndim < 2 or weight[0].numel() < 8:
                assert torch.equal(weight, full[name])
                continue
            rows, close = full[name].flatten(1), weight.flatten(1)
            step = rows.abs().amax(1, keepdim=True) / 127
            assert ((close - rows).abs() <= 0.5001 * step).all()
            assert all(len(row.unique()) <= 255 for row in close)
            changed += not torch.equal(rows, close)
    assert changed > 20
    assert not rounded.autoencoder.decoder[0].weight[1].any()


def test_rounded_model_is_stored_in_bytes(guided, tmp_path):
    full, small = guided, Exported(round_weights(guided.pipe), tmp_path)
    assert (full.about["precision"]["stored"], small.about["precision"]["stored"]) == ("float32", "int8")
    weights = [
        [onnx.numpy_helper.to_array(weight) for weight in onnx.load(graph.path).graph.initializer]
        for graph in (full, small)
    ]
    assert all(weight.dtype != np.int8 for weight in weights[0])  # nothing that would lose something
    in_bytes = sum(weight.size for weight in weights[1] if weight.dtype == np.int8)
    assert in_bytes > 0.85 * sum(weight.size for weight in weights[0])
    eps, wishes = guided.pipe.vae.noise(3, make_generator(5)), ([0, 1, 2], Guidance(2, 2))
    images = small(eps, *wishes)
    assert (images - reference(small.pipe, eps, *wishes)).abs().max() < 1e-4
    assert 1e-4 < (images - full(eps, *wishes)).abs().mean() < 0.02  # the eight bits are those of the weights


@pytest.mark.parametrize(("extra", "fits"), [(1, True), (1 / 127, True), (0, True), (0.3, False)])
def test_bytes_are_for_what_was_rounded(extra, fits):
    weights = np.ones((2, 16), np.float32)
    weights[0, -1], weights[1] = extra, 0
    model = graph_of(weights)
    assert store_as_bytes(model) == 32 * fits
    onnx.checker.check_model(model, full_check=True)
    (summed,) = onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, {"x": np.zeros((2, 16), np.float32)}
    )
    assert np.allclose(summed, weights, rtol=1e-6, atol=0)


def test_eight_bits_keep_the_photographs():
    "What the play page says of its model, in PyTorch and on few pictures."
    pipe = LatentVAEPipeline.from_pretrained("cifar10")
    eps, labels = pipe.vae.noise(20, make_generator(0)), [i % 10 for i in range(20)]
    pictures = [
        (reference(model, eps, labels, Guidance(2, 2)) * 127.5).round()
        for model in (pipe, round_weights(pipe))
    ]
    change = (pictures[1] - pictures[0]).abs()
    assert 0.3 < change.mean() < 1 and change.max() <= 30 and (change <= 2).float().mean() > 0.94


def test_pipeline_is_not_changed(tmp_path, monkeypatch):
    pipe = build()
    pipe.vae.train()

    def trace(half):
        assert not half.vae.training and half.vae is not pipe.vae
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cfvae.onnx_export._trace", trace)
    with pytest.raises(CfvaeError, match="No space left"):
        export_onnx(pipe, tmp_path)
    assert pipe.vae.training and not pipe.autoencoder.training


def test_inputs_are_checked(guided):
    pipe, eps = guided.pipe, guided.pipe.vae.noise(2)
    for wishes, culprit in [
        (([0],), "2 examples need 2 labels"),
        (([0, 4],), "labels must be 0 to 2, or 3"),
        (([0, -1],), "labels must be"),
        ((None, Guidance((1, 2, 3), 0)), "mean_weight has 3"),
        ((None, None, (1.0, 1.0, 1.0)), "temperature has 3 entries: give 2"),
        ((None, None, -1.0), "temperature is -1.0"),
    ]:
        with pytest.raises(CfvaeError, match=culprit):
            graph_inputs(pipe, eps, *wishes)
    for wrong in (eps[:2], [], None, 5, [1, 2], eps[0]):
        with pytest.raises(CfvaeError, match="eps must be a list"):
            graph_inputs(pipe, wrong)
    with pytest.raises(CfvaeError, match=r"guidance is 3.0: Guidance\(weight\)"):
        graph_inputs(pipe, eps, None, 3.0)
    with pytest.raises(CfvaeError, match="without classes"):
        graph_inputs(build(), build().vae.noise(1), [0])


@pytest.mark.parametrize("wrong", ["shapes", None, Path("a")])
def test_what_is_no_pipeline_is_refused(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (SamplingHalf, round_weights, lambda pipe: export_onnx(pipe, "graph")):
        with pytest.raises(CfvaeError, match="is no pipeline: LatentVAEPipeline.from_pretrained loads one"):
            use(wrong)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_finite_is_named(tmp_path):
    broken = build()
    with torch.no_grad():
        broken.vae.decoder.start[0, 0] = torch.nan
    with pytest.raises(CfvaeError, match=r"the model: numbers are not finite \(.*decoder.start.*: train it"):
        export_onnx(broken, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_package(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CfvaeError, match=r"pip install 'cfvae\[onnx\]'"):
        export_onnx(build(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CfvaeError, match="the folder is ''"):
        export_onnx(build(), "")
    assert not list(tmp_path.iterdir())


def test_folder_is_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cfvae.onnx_export._trace", lambda half: pytest.fail("the place has to be checked before the work")
    )
    (tmp_path / "taken").write_text("mine")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(CfvaeError, match="cannot write the graph to"):
            export_onnx(build(), folder)
    assert (tmp_path / "taken").read_text() == "mine"


def test_folder_without_permission(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        "cfvae.onnx_export._trace", lambda half: pytest.fail("the place has to be checked before the work")
    )
    monkeypatch.setattr("pathlib.Path.touch", forbidden)
    with pytest.raises(CfvaeError, match="Permission denied"):
        export_onnx(build(), tmp_path)


OURS = json.dumps({"format": 1, "noise_shapes": [], "opset": 20})  # enough to be known by


def quick_export(monkeypatch, folder):
    "Export without tracing, which takes seconds."
    monkeypatch.setattr("cfvae.onnx_export._trace", lambda half: graph_of(np.ones(64, np.float32)))
    monkeypatch.setattr("cfvae.onnx_export._verify", lambda graph, half: None)
    return export_onnx(build(), folder)


@pytest.mark.parametrize(
    "files",
    [
        {"model.json": '{"layers": 3}'},
        {"model.json": '{"format": "layers-model"}', "model.onnx": "mine"},
        {"model.json": "[1]"},
        {"model.json": '{"format": 1, "nois', "model.onnx": "mine"},
        {"model.onnx": "mine"},
    ],
)
def test_foreign_files_are_refused_and_kept(tmp_path, monkeypatch, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CfvaeError, match=r"a model\.\w+.* that cfvae did not write.*another folder"):
        quick_export(monkeypatch, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_way_back_out_of_a_folder_that_is_not_there_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.onnx").write_text("mine")
    with pytest.raises(CfvaeError, match="model.onnx that cfvae did not write"):
        quick_export(monkeypatch, tmp_path / "new" / ".." / "mine")
    assert (tmp_path / "mine" / "model.onnx").read_text() == "mine"


def test_own_files_are_replaced_and_neighbours_are_kept(tmp_path, monkeypatch):
    for name in ("model.onnx.tmp", "model.json.tmp", "notes.txt"):
        (tmp_path / name).write_text("mine")
    for _ in range(2):
        quick_export(monkeypatch, tmp_path)
    for name in ("model.onnx.tmp", "model.json.tmp", "notes.txt"):
        assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 5


def test_failure_leaves_the_old_files(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_text("old")
    (tmp_path / "model.json").write_text(OURS)
    monkeypatch.setattr("cfvae.onnx_export._trace", lambda half: graph_of(np.ones(64, np.float32)))
    monkeypatch.setattr("cfvae.onnx_export._verify", lambda graph, half: None)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cfvae.onnx_export.write_synced", full)
    with pytest.raises(CfvaeError, match="No space left"):
        export_onnx(build(), tmp_path)
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == {"model.onnx": "old", "model.json": OURS}


def test_a_wrong_graph_is_noticed(guided, tmp_path, monkeypatch):
    wrong = onnx.load(guided.path)
    weight = next(w for w in wrong.graph.initializer if "head.weight" in w.name)
    weight.CopyFrom(onnx.numpy_helper.from_array(1.05 * onnx.numpy_helper.to_array(weight), weight.name))
    monkeypatch.setattr("cfvae.onnx_export._trace", lambda half: wrong)
    with pytest.raises(CfvaeError, match="draws other pictures"):
        export_onnx(guided.pipe, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_onnxruntime_the_form_is_checked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    broken = graph_of(np.ones(64, np.float32))
    broken.graph.node[0].op_type = "NoSuchOperation"
    monkeypatch.setattr("cfvae.onnx_export._trace", lambda half: broken)
    with pytest.raises(Exception, match="NoSuchOperation"):
        export_onnx(build(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_foreign_first_stage(tmp_path):
    pipe = build()
    pipe.autoencoder = torch.nn.Identity()
    with pytest.raises(CfvaeError, match="comes from elsewhere"):
        export_onnx(pipe, tmp_path)
