"""launch.train, launch.evaluate and launch.show as a person meets them: counts, errors, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from senet.errors import UsageError
from senet.models.timm import released
from tests.helpers import ROOT, environment, run


def test_validation_counts_203_on_any_number_of_ranks(trained: Path, images: Path) -> None:
    errors = []
    for ranks in (1, 2, 3):
        done = run("launch.evaluate", trained, "--data", images, "--json", "--val-batch", 50, ranks=ranks)
        assert done.returncode == 0, done.stderr
        errors.append(json.loads(done.stdout.splitlines()[-1]))
    assert errors[0]["images"] == 203
    assert errors[0].keys() >= {"images", "top1_error", "top5_error", "loss"}
    assert errors[1] == errors[0]
    assert errors[2] == errors[0]
    logged = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    best = min(record["top1_error"] for record in logged if record["kind"] == "val")
    assert errors[0]["top1_error"] == best


def test_run_folder(trained: Path) -> None:
    logged = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert all(record.keys() >= {"kind", "epoch", "step", "seconds"} for record in logged)
    assert [record["images"] for record in logged if record["kind"] == "val"] == [203, 203]
    assert sum(record["images"] for record in logged if record["kind"] == "train") == 2 * 60
    assert {p.name for p in trained.iterdir()} >= {"config.yaml", "run.json", "log.jsonl", "checkpoints"}
    assert (trained / "classes.txt").read_text() == "class0\nclass1\nclass2\n"
    (start,) = json.loads((trained / "run.json").read_text())
    assert start["versions"]["torch"]
    assert (start["ranks"], start["step"], start["gpu"]) == (2, 0, "")
    assert len(start["commit"]) == 40


def test_a_finished_run_says_so(trained: Path, images: Path, tiny: Path) -> None:
    before = (trained / "log.jsonl").read_text()
    second = run("launch.train", tiny, "--data", images, "--out", trained)
    assert second.returncode == 0
    assert "done: 2 epochs" in second.stderr
    assert (trained / "log.jsonl").read_text() == before


def test_other_pixels_than_in_training_are_warned_of(trained: Path, images: Path) -> None:
    same = run("launch.evaluate", trained, "--data", images)
    assert "warning" not in same.stderr
    other = run("launch.evaluate", trained, "--data", images, "--backend", "pillow")
    assert other.returncode == 0
    assert "backend was 'dali-cpu', is now 'pillow'" in other.stderr or "was 'dali-cpu', is 'pillow'" in other.stderr


def test_other_classes_than_in_training_are_refused(trained: Path, few_images: Path) -> None:
    """The images of each are the same, but their labels would be others."""
    for split in ("train", "val"):
        (few_images / split / "class1").rename(few_images / split / "zebra")
    reason = "label 1 is 'class2' here, and was 'class1' in training"
    refused(2, reason, "launch.evaluate", trained, "--data", few_images)


def refused(code: int, message: str, module: str, *words: object, ranks: int = 1) -> None:
    done = run(module, *words, ranks=ranks)
    assert done.returncode == (code if ranks == 1 else 1), done.stderr  # torchrun makes every failure a 1
    assert message in done.stderr
    if ranks == 1:
        assert "Traceback" not in done.stderr
        assert len([line for line in done.stderr.splitlines() if "error" in line]) == 1, done.stderr


def test_usage_errors_are_one_line_and_change_nothing(tmp_path: Path, tiny: Path, few_images: Path) -> None:
    out = tmp_path / "out"
    train = ("launch.train", tiny, "--out", out)
    refused(2, "no such folder; expected DIR/train/CLASS", *train, "--data", tmp_path / "nowhere")
    for where, reason in ((tiny / "out", "Not a directory"), ("/proc/out", "No such file or directory")):
        refused(2, f"{where}: {reason}; ", "launch.train", tiny, "--data", few_images, "--out", where)
    refused(
        2, "data.classes is 5; give the right --data, or data.classes=3", *train, "--data", few_images, "data.classes=5"
    )
    refused(2, "net.se.rato: unknown key; did you mean net.se.ratio?", *train, "--data", few_images, "net.se.rato=4")
    refused(
        2,
        "batch: 13 does not divide over 2 ranks; use batch=12, 14 or 1, 13 ranks",
        *train,
        "--data",
        few_images,
        "batch=13",
        ranks=2,
    )
    for image in (few_images / "val/class1").iterdir():
        image.unlink()
    refused(2, "val/class1: an empty class folder", *train, "--data", few_images)
    assert not out.exists()


def test_what_is_wrong_is_told_before_torch_is_imported(tmp_path: Path, tiny: Path) -> None:
    program = """
import sys
from launch import train
try:
    train.main(sys.argv[1:])
finally:
    print("torch" in sys.modules)
"""
    words = [sys.executable, "-c", program, tiny, "--data", tmp_path / "nowhere"]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert (done.stdout, "no such folder" in done.stderr) == ("False\n", True)


def test_of_several_ranks_one_says_what_is_wrong_and_has_the_last_word(tmp_path: Path, tiny: Path) -> None:
    words = (tiny, "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    own = run("launch.train", *words, "--gpus", 2)
    assert (own.returncode, own.stderr.count("error"), own.stderr.count("\n")) == (2, 1, 1), own.stderr
    under_torchrun = run("launch.train", *words, ranks=2, torchrun=True)
    *_, last, _ = under_torchrun.stderr.splitlines()  # below it torchrun draws a line
    assert "no such folder" in last, under_torchrun.stderr
    assert under_torchrun.stderr.count("error: --data") == 2  # ours, and torchrun's report of it
    usage = run("launch.train", tiny, "--keep", "many", ranks=2, torchrun=True)
    assert usage.stderr.count("error: argument --keep") == 2, usage.stderr
    left_over = run("launch.train", *words, RANK="", WORLD_SIZE="2")
    assert (left_over.returncode, left_over.stderr.count("\n")) == (2, 1)
    assert "unset RANK" in left_over.stderr
    assert not (tmp_path / "out").exists()


def test_another_run_in_the_folder_is_not_overwritten(trained: Path, images: Path, tiny: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    refused(2, "optim.lr: 0.05 -> 0.01", "launch.train", tiny, "--data", images, "--out", trained, "optim.lr=0.01")
    (trained.parent / "copy").mkdir()
    (copy := trained.parent / "copy" / "out").mkdir()
    shutil.copytree(trained / "checkpoints", copy / "checkpoints")
    refused(
        2, "net.blocks: [1, 1] -> [1, 2]", "launch.train", tiny, "--data", images, "--out", copy, "net.blocks=[1, 2]"
    )
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before


def test_damaged_checkpoints_are_refused_and_the_one_before_is_used(
    trained: Path, images: Path, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    (out / "checkpoints/best.pt").unlink()  # it may be the newest, too
    newest = sorted((out / "checkpoints").glob("step-*.pt"))[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # torch.load would not notice
    newest.write_bytes(content)
    refused(2, "its bytes have changed since it was written", "launch.evaluate", newest, "--data", images)
    again = run("launch.train", tiny, "--data", images, "--out", out, ranks=2)
    assert again.returncode == 0, again.stderr
    assert f"{newest}: refused: its bytes have changed" in again.stdout + again.stderr
    assert "resumed" in again.stderr
    for path in (out / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    refused(2, "no valid checkpoint, but best.pt and all in all", "launch.train", tiny, "--data", images, "--out", out)


def test_undecodable_images_are_named_in_the_log_and_on_the_terminal(
    tmp_path: Path, tiny: Path, few_images: Path
) -> None:
    bad = [few_images / "train/class0/000.JPEG", few_images / "val/class1/001.JPEG"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:500])
    done = run("launch.train", tiny, "--data", few_images, "--out", tmp_path / "out", ranks=2)
    assert done.returncode == 0, done.stderr
    logged = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert {line["undecodable"] for line in logged if line["kind"] == "event"} == {str(path) for path in bad}
    assert all(line["images"] == 8 for line in logged if line["kind"] == "val")
    assert all(f"undecodable {path}" in done.stderr for path in bad)
    stopped = run("launch.train", tiny, "--data", few_images, "--out", tmp_path / "other", "--max-bad", 0)
    assert stopped.returncode == 1
    assert "more than --max-bad 0; mend or remove them" in stopped.stderr
    assert "Traceback" not in stopped.stderr


def test_too_many_undecodable_images_on_all_ranks_together_stop_the_run(
    tmp_path: Path, tiny: Path, few_images: Path
) -> None:
    """No rank alone has more than --max-bad; the checkpoint stays, and more patience goes on from it."""
    bad = sorted((few_images / "train").glob("*/*"))[::6]
    for path in bad:
        path.write_bytes(b"")
    words = [tiny, "--data", few_images, "--out", tmp_path / "out", "--log-every", 1, "batch=4"]
    done = run("launch.train", *words, "--max-bad", len(bad) - 1, ranks=4)
    assert done.returncode == 1
    assert f"{len(bad)} images cannot be decoded, more than --max-bad {len(bad) - 1}" in done.stderr
    assert all(str(path) in done.stderr for path in bad)
    again = run("launch.train", *words, "--max-bad", len(bad), ranks=4)
    assert again.returncode == 0, again.stderr
    assert "resumed" in again.stderr


def test_foreign_files_are_refused(tmp_path: Path, images: Path) -> None:
    refused(2, "no such checkpoint", "launch.evaluate", tmp_path / "nothing.pt", "--data", images)
    foreign = tmp_path / "foreign.pt"
    torch.save({"state_dict": {}}, foreign)
    refused(2, "foreign.pt: no weights in it", "launch.evaluate", foreign, "--data", images)


def test_timm_models_are_evaluated_with_given_weights(tmp_path: Path, images: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet", num_classes=1000).state_dict(), weights)
    refused(
        2,
        "3 classes in val, but data.classes is 1000",
        "launch.evaluate",
        "timm:test_resnet",
        "--weights",
        weights,
        "--data",
        images,
    )
    refused(2, "did you mean 'resnet50'", "launch.evaluate", "timm:resnet5O", "--data", images)
    with pytest.raises(
        UsageError, match=r"weights\.pth: not the weights of timm:test_vit .*; give those of this model"
    ):
        released("test_vit", weights)
    with pytest.raises(UsageError, match="wants images of 3 x 384 x 384, crop mode squash; square centre crops are"):
        released("convnextv2_base.fcmae_ft_in22k_in1k_384")
    assert released("test_resnet", weights)[1]["crop"] == 160, "the size that timm tests it with"


def test_show_needs_no_data() -> None:
    done = run("launch.show", "configs/imagenet/se_resnet50.yaml", "--json", "epochs=4")
    shown = json.loads(done.stdout)
    assert shown["parameters"] == 28_088_024
    assert round(shown["gmacs"], 3) == 3.86
    assert shown["config"]["epochs"] == 4
    assert len(shown["learning_rate"]) == 4
    listed = run("launch.variants", "configs/ablations/ratio.yaml").stdout.splitlines()
    assert listed[:2] == ["configs/ablations/ratio.yaml:r2", "configs/ablations/ratio.yaml:r4"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_and_accumulation(tmp_path: Path, tiny: Path, images: Path, precision: str) -> None:
    """A gradient that is not finite is a fault in bf16; in fp16 it lets the loss scale find its size."""
    done = run(
        "launch.train",
        tiny,
        "--data",
        images,
        "--out",
        tmp_path / "out",
        "--largest-batch",
        4,
        f"precision={precision}",
        "epochs=1",
        SENET_FAULTS="nan@0:2",
    )
    assert done.returncode == 0, done.stderr
    assert "x 4 x 3 accumulated" in done.stderr
    assert len(list((tmp_path / "out").glob("nonfinite-*"))) == (precision == "bf16")
    assert ("gradients not finite" in done.stderr) == (precision == "bf16")


def test_overfit_reaches_no_error(tmp_path: Path) -> None:
    done = run("launch.train", "configs/debug/overfit.yaml", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    last = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()][-1]
    assert last["train_top1_error"] == 0
