"""What is registered without importing the flows is what the flows are."""

from typing import Any

import pytest
import yaml
from prefect import Flow

from vabal.flows import deploy, on_ray, promote, schedule
from vabal.flows import round as nightly


@pytest.mark.parametrize(
    ("place", "flows"),
    [(0, (nightly.active_learning_round, on_ray.active_learning_round)), (1, (promote.promote_challenger,))],
)
def test_the_deployments_tell_of_the_flows_what_prefect_would_find_out(
    place: int, flows: tuple[Flow[..., Any], ...]
) -> None:
    told = yaml.safe_load((deploy.infra_folder() / "prefect.yaml").read_text())["deployments"][place]
    for flow in flows:
        assert told["flow_name"] == flow.name == (schedule.ROUND_FLOW, schedule.PROMOTION_FLOW)[place]
        assert told["parameter_openapi_schema"] == flow.parameters.model_dump(exclude_unset=True)
