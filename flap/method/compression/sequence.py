"""Sequential pruning, as in Wanda-sp: the layers are pruned one after another.

The inputs on which a layer is calibrated are the outputs of the pruned layers before it. A plan
lists the units (heads, neurons or experts) that stay. A compensation changes output projections to
make up for the removed units, and a fit report says how well this succeeds.
"""

from dataclasses import dataclass

from flap.method.allocation import Budget, LayerPlan, PruningPlan, UniformLayers
from flap.method.calibration import Calibration
from flap.method.compression.apply import CompressLayer, joined
from flap.method.compression.compensation import Compensation, FitReport
from flap.method.importance import Metric, score_layer
from flap.storage import NOT_KEPT, Notes, WorkFolder, as_json

DECIDED = as_json("decided")  # the file format for the plan and the fit reports of one layer


@dataclass(frozen=True)
class SequentialPruning:
    """Scores and prunes each layer before the next layer is calibrated."""

    metric: Metric
    structure: UniformLayers
    compensation: Compensation
    compress_layer: CompressLayer

    def prune(
        self, calibration: Calibration, budget: Budget, work: WorkFolder = NOT_KEPT
    ) -> tuple[PruningPlan, dict[str, FitReport]]:
        """Prune a model, and return the plan and the fit reports.

        With compensation=linear, there is a fit report for each pruned attention and MLP, or in a
        mixture of experts for each expert. The keys are the names of the attentions, MLPs and
        experts. With compensation=bias or none, there are no fit reports.

        work: the working directory, from which an interrupted run resumes if layers are read from
            files. If the metric needs no statistics, the run always starts at the first layer. The
            reason is that the scores of such a metric may be random, and random scores depend on
            how many layers the process has already scored.
        """
        covariance = self.metric.needs_covariance or self.compensation.needs_covariance
        adapter = calibration.model.adapter
        work = calibration.model.if_streamed(work) if self.metric.needs_statistics else NOT_KEPT
        notes = Notes(DECIDED, work)
        for i, observed in calibration.in_sequence(covariance, work):
            scores = score_layer(self.metric, adapter.blocks(i), observed)
            plan = self.structure.allocate_layer(i, scores, budget)
            reports = self.compress_layer(adapter, i, plan, self.compensation, observed)
            notes.write(i, (plan, reports))
            del observed  # free this layer's covariances before the next layer is observed

        layers = []
        fits = []
        for i in range(len(budget.layers)):
            (heads, neurons), reports = notes.read(i)
            layers.append(LayerPlan(tuple(heads), tuple(neurons)))
            fits.append(reports)
        return PruningPlan(tuple(layers)), joined(fits)
