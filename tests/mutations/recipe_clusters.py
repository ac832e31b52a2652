"""Bugs in a target that clusters a teacher's features, which the tests must find."""

from tests.mutations import Plant, Row

CLUSTERS, FILE = "tests/recipe/test_clusters.py::test_", "mpp/recipe/targets/clusters.py"
ROWS: list[Plant | Row] = [
    Row(
        "the shares of all places are made together", FILE, "scores if self.knobs.by_place else scores.flatten(0, 1)[:, None]", "scores.flatten(0, 1)[:, None]",
        CLUSTERS + "goals_and_both_losses_are_those_of_the_papers_formulas",
    ),
    Row(
        "the last round is over samples", FILE, "        scores = scores.log_softmax(-1)\n    return scores.exp()", "    return scores.exp()",
        CLUSTERS + "shares_are_those_of_sinkhorns_rounds_by_hand",
    ),
    Row(
        "each process balances its own images", FILE, "across.total((scores - most).exp().sum(0, keepdim=True))", "(scores - most).exp().sum(0, keepdim=True)",
        CLUSTERS + "processes_together_give_the_shares_of_one_with_all_their_images",
    ),
    Row(
        "Sinkhorn's exponential overflows", FILE, "most = across.most(scores.amax(0, keepdim=True))", "most = torch.zeros(())",
        CLUSTERS + "scores_beyond_what_an_exponential_holds_give_finite_shares",
    ),
    Row(
        "the head learns towards its sharp assignments at their temperature", FILE, "F.log_softmax(logits / self.knobs.temperature", "F.log_softmax(logits / self.knobs.target_temperature",
        CLUSTERS + "goals_and_both_losses_are_those_of_the_papers_formulas",
    ),
    Row(
        "a goal passes gradients to the head", FILE, "        with torch.no_grad():\n            assigned = self._assigned(logits)", "        assigned = self._assigned(logits)",
        CLUSTERS + "the_head_learns_from_its_own_loss_alone_and_the_student_from_the_predictions_alone",
    ),
    Row(
        "the rows of the student's head have no length of their own", FILE, "F.normalize(self.direction, dim=-1) * self.length[:, None]", "F.normalize(self.direction, dim=-1)",
        CLUSTERS + "the_students_head_is_torchs_weight_norm_on_vectors_of_unit_length",
    ),
    Row(
        "clusters begin at random, whatever the seed", "mpp/recipe/model.py",
        "        torch.manual_seed(seed_of(config.seed, INIT, 1))\n        target = config.target.build(",
        "        target = config.target.build(",
        CLUSTERS + "the_same_seed_draws_the_same_clusters",
    ),
    Row(
        "the clusters learn at the student's rate", "mpp/train/optim.py", "lr_scale, decay_scale = target", "decay_scale = target[1]",
        "tests/pipeline/test_clusters_run.py::test_the_targets_own_parameters_step_by_adamw_at_their_own_rate_and_decay",
    ),
    Row(
        "a target's own loss is not learned from", "mpp/mains/pretrain.py", "step.backward(loss.mean() + own)", "step.backward(loss.mean())",
        "tests/pipeline/test_clusters_run.py::test_the_targets_own_parameters_step_by_adamw_at_their_own_rate_and_decay",
    ),
    Row(
        "features are clustered at their own length", FILE, "F.normalize(teacher.patches(images, normed=True)[0].float(), dim=-1)", "teacher.patches(images, normed=True)[0].float()",
        CLUSTERS + "goals_and_both_losses_are_those_of_the_papers_formulas",
    ),
]  # fmt: skip
