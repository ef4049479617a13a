"""The order of the learning steps over a workspace's files, for whoever runs them: the night's flow, and a replay."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from vabal.rounds.context import StageReference

RunAll = Callable[[Callable[..., StageReference], list[tuple[Any, ...]]], list[StageReference]]


def one_by_one(step: Callable[..., StageReference], calls: list[tuple[Any, ...]]) -> list[StageReference]:
    """The step once a call, in this thread."""
    return [step(*arguments) for arguments in calls]


def learn(
    steps: ModuleType,
    begun: Any,
    shards: Sequence[str],
    *,
    needs_vae: bool,
    needs_class_terms: bool = False,
    needs_embeddings: bool = False,
    members: Sequence[str] = (),
    run_all: RunAll = one_by_one,
) -> dict[str, Any]:
    """From the training of the classifier to the selection: what each step put out, by name.

    `steps` has the steps by their names, and `begun` is what each of them takes first: `vabal.rounds.steps` itself and
    a `RoundContext`, or the flow's tasks and their ticket. With a VAE come class terms and likelihoods, without one the
    class terms alone where they are needed. `run_all` may run the calls of a step side by side; where it does,
    `members` are the scoring networks that are worth a task each (`Learner.members`).
    """

    def run(step: Callable[..., StageReference], *arguments: Any) -> StageReference:
        return run_all(step, [(begun, *arguments)])[0]

    if needs_embeddings:
        run_all(steps.embed_images, [(begun, shard) for shard in shards])
    if members:
        first = run(steps.train_first)
        run_all(steps.train_member, [(begun, first, name) for name in members])
    trained = run(steps.train_classifier)
    evaluated = run(steps.evaluate, trained)
    extracted = run_all(steps.extract_features, [(begun, trained, shard) for shard in shards])
    estimated = None
    if needs_vae or needs_class_terms:
        encoded = run(steps.train_vae, extracted) if needs_vae else None
        terms = run(steps.estimate_class_terms, trained, extracted, encoded)
        calls = [(begun, ref, encoded) for ref in extracted if encoded]
        likelihoods = run_all(steps.estimate_likelihood, calls) if calls else []
        estimated = {"terms": terms, "shards": likelihoods}
    selected = steps.select_batch(begun, extracted, estimated)
    return {"trained": trained, "evaluated": evaluated, "estimated": estimated, "selected": selected}
