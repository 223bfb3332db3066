"""The card that goes with an exported net: what it is, how good, how it was made, how it is used."""

from collections.abc import Mapping
from typing import Any

import yaml

from senet.config import to_dict
from senet.data.imagenet import readable
from senet.export.forms import FORMS
from senet.models import summary
from senet.report.facts import RunFacts
from senet.report.paper import quoted
from senet.report.summary import card as run_facts
from senet.run.load import Trained
from senet.system import table

SHOWN = 12  # classes


def card(trained: Trained, form: str, facts: Mapping[str, Any], run: RunFacts | None, compared: str) -> str:
    """Return the card in Markdown; `run` that the net is from, if that is known, and how it was `compared`."""
    config = trained.config
    size, paper = summary(config.net, config.data.classes, config.data.crop), quoted(config)
    names = [readable(name) for name in trained.classes]
    listed = ", ".join(names[:SHOWN]) + f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
    parts = [
        f"# {run.name if run else trained.origin}",
        f"An image classifier of {config.data.classes} classes{f': {listed}' if names else ''}. It has "
        f"{size.parameters / 1e6:.2f} M parameters and takes {size.gmacs:.3g} G multiply-adds for an image of "
        f"{config.data.crop} px. From {trained.origin}.",
        f"## Use\n\n```python\n{FORMS[form].usage}\n```",
        f"{compared} How images become input, the same as in `preprocessing.json`:",
        table.markdown(["", ""], list(facts["preprocessing"].items())),
    ]
    if run:
        rows = [row for row in run_facts(run) if row[0] not in ("folder", "net", "data")]
        parts += ["## Training", table.markdown(["", ""], rows)]
        if run.command:
            parts.append(f"```bash\n{run.command}\n```")
    if paper:
        differs = f" Settings that differ from its recipe: {'; '.join(paper.differs)}." * bool(paper.differs)
        parts.append(f"The paper (arXiv 1709.01507) has for this net: {paper.text}.{differs}")
    settings = yaml.safe_dump(to_dict(config), sort_keys=False)
    parts += [
        f"<details><summary>Config</summary>\n\n```yaml\n{settings}```\n</details>",
        "## Limits\n\nThe errors are those on images like the training's. It was not tested for other images, nor for "
        "fairness, and holds every image for one of its classes.",
    ]
    return "\n\n".join(parts) + "\n"
