"""All that mpp knows of DeepSpeed: one process group, one engine, what an optimiser step needs of them, and the state that ZeRO deals out."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn

from mpp.base.errors import ConfigError, UserError
from mpp.config.sections import SystemConfig
from mpp.data.batch_plan import BatchPlan
from mpp.model.recompute import recompute_blocks
from mpp.monitor.norms import as_figures, norms, parts_of
from mpp.monitor.phases import Phases
from mpp.processes.peers import Peers
from mpp.processes.watch import watch
from mpp.processes.world import World, join_processes
from mpp.train.compiling import CompiledStep, FixedGradients
from mpp.train.gradient_exchange import GradientExchange

INFERENCE_SUM = "deepspeed_shm_comm"  # of processes of one machine without a GPU: DeepSpeed's inference alone calls it
LEAST, TRIED = (0, 18), "mpp is tried with 0.18 and 0.19; pip install deepspeed==0.19.8"
LARGEST_BUCKET = 500_000_000  # elements; DeepSpeed's own
MEASURING = "measuring"  # the phase of forward passes in eval mode


def start_distributed(patience: float = 60, slow: float = 1800, folder: Path = Path(), peers: Peers | None = None) -> World:
    """`join_processes`, for DeepSpeed, too."""
    quiet_deepspeed()
    world = join_processes(patience, slow, folder, alone_too=True, peers=peers)
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    check_version(deepspeed.__version__)
    if world.device.type == "cpu":
        __compatible_ops__[INFERENCE_SUM] = False  # else it is compiled now, for half a minute or more, and no step calls it
    deepspeed.init_distributed(dist_backend="nccl" if world.device.type == "cuda" else "gloo", verbose=False)
    return world


def check_version(version: str) -> None:
    """Raises UserError for a DeepSpeed without the private attributes that this file uses."""
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST:
        raise UserError(f"DeepSpeed {version} is too old: {TRIED}")


def quiet_deepspeed() -> None:
    """Warnings and errors that matter only: others would bury the progress line."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")  # torch brings its own CUDA; nothing is compiled for it here
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # said at the start in our own words; to find out by itself it warns


class Engine:
    """A model, its optimiser and its gradients, on this world.  `accumulation` calls of `backward`, then one of `update`, make a step."""

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        plan: BatchPlan,
        world: World,
        system: SystemConfig,
        clip_norm: float,
    ):
        import deepspeed

        self.stage, self.clip_norm = system.zero_stage, clip_norm
        self.phases = Phases(world.device)
        self._state_linked = False
        ours: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": plan.micro_batch,
            "gradient_accumulation_steps": plan.accumulation,
            "gradient_clipping": clip_norm if self.stage else 0.0,  # at stage 0 the norm is not reported, so it is taken and clipped here
            # DeepSpeed's own linear layer adds the bias after rounding: another forward pass at stage 3 than at 0 to 2.
            "zero_optimization": {"stage": self.stage, "memory_efficient_linear": False, "reduce_bucket_size": self._bucket(model)},
            "zero_allow_untested_optimizer": True,  # torch's AdamW
            **_precisions(system),
            "steps_per_print": 2**31,
            "timers": {"throughput": {"enabled": False}},  # it would wait for the device before and behind every micro-batch
        }
        settings = _merged(ours, system.deepspeed)
        recompute_blocks(model, system.recompute)
        self._compiled = CompiledStep(model, world.device, plan.micro_batch, world.first, system.cuda_graphs) if system.compile else None
        try:
            self.deepspeed, self.optimiser, *_ = deepspeed.initialize(
                model=model, optimizer=optimiser, config=settings, dist_init_required=False
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                f"DeepSpeed refuses system.deepspeed: {'.'.join(map(str, first['loc']))}: {first['msg']}; see its configuration reference"
            ) from error
        # At stage 0 DeepSpeed would copy all gradients to one place and back, of one process, too, and behind the backward pass.
        if self.stage == 0:
            self.deepspeed.enable_backward_allreduce = False
        trained = [(name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad]
        self._trained = [parameter for _, parameter in trained]
        self._parts, self._gradient_norms = parts_of(trained), dict[str, Tensor]()
        self._fixed = FixedGradients(self._trained) if self._compiled and self._compiled.replays else None
        self._exchange: GradientExchange | None = None
        if self.stage == 0 and world.size > 1:
            self._exchange = GradientExchange(self._trained, world.size, self.deepspeed.communication_data_type)
        if self.stage == 3:
            for module in model.modules():
                for parameter in getattr(module, "borrowed_parameters", tuple)():
                    deepspeed.zero.register_external_parameter(module, parameter)
        if self.stage in (1, 2) and not hasattr(self.optimiser, "_lazy_init_hp_params_optimizer_state"):
            raise UserError(f"system.zero_stage={self.stage} does not work with DeepSpeed {deepspeed.__version__}: {TRIED}")

    @staticmethod
    def _bucket(model: nn.Module) -> int:
        """Elements of the buffer through which ZeRO 1 to 3 reduce gradients: DeepSpeed allocates all of it, 2 GB of float32 if it is left to itself."""
        return min(LARGEST_BUCKET, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))

    @property
    def module(self) -> nn.Module:
        return self.deepspeed.module

    @property
    def inner_optimiser(self) -> torch.optim.Optimizer:
        """torch's own, whose state ZeRO keeps in flat pieces."""
        return self.optimiser.optimizer if self.stage else self.optimiser

    def forward(self, *inputs: Tensor) -> Any:
        """What the module's own forward pass gives, under autocast where system.precision says so."""
        training = self.module.training  # DeepSpeed's own engine says True whatever `train` was told
        with self.phases("forward" if training else MEASURING):
            call = lambda: self.deepspeed(*inputs)
            outputs = self._compiled(call, training, len(inputs[0])) if self._compiled else call()
        watch.moved()
        return outputs

    def backward(self, loss: Tensor) -> None:
        """loss: the mean over this micro-batch; DeepSpeed divides by the accumulation and averages over ranks."""
        watch.meets()  # the gradients are summed on the way
        last = self.deepspeed.is_gradient_accumulation_boundary()
        if last and self._exchange:
            self._exchange.expect()
        with self.phases("backward"):
            self.deepspeed.backward(loss)
        if not last:
            self.deepspeed.step()
        elif self._exchange:
            with self.phases("reduce"):
                self._exchange.finish()

    def update(self, learning_rate: float, weight_decay: float | None = None, by_depth: bool = False) -> Tensor:
        """Clip, step, clear the gradients; the global gradient norm before clipping, on the device.  Where it is not finite, weights and moments stay
        as they are, without anybody waiting to see it (ZeRO 1 to 3 wait: DeepSpeed's own check).

        learning_rate, weight_decay: of a group whose lr_scale and decay_scale are 1, or that has none; null: the decay that each group has.
        by_depth: `norms_by_depth` will be asked for.
        """
        with self.phases("optimiser"):
            norm = self._step(learning_rate, weight_decay, by_depth)
        watch.moved()
        if isinstance(norm, Tensor):
            return norm.to(self.deepspeed.device, torch.float32)
        return torch.full((), norm, dtype=torch.float32, device=self.deepspeed.device)  # filled there: a copy would wait for the device

    def norms_by_depth(self, gradients: bool = True) -> dict[str, float]:
        """norm/weight/PART of the weights as they are, where they are whole (ZeRO 0 to 2), and norm/gradient/PART of the last step that was to tell it,
        before clipping (ZeRO 0: beyond, a rank has a share of each); PART: monitor/norms.py."""
        weights = norms(self._parts) if self.stage < 3 else {}
        return as_figures("weight", weights) | (as_figures("gradient", self._gradient_norms) if gradients else {})

    def _step(self, learning_rate: float, weight_decay: float | None, by_depth: bool) -> Any:
        for group in (*self.inner_optimiser.param_groups, *self.optimiser.param_groups):
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
            if weight_decay is not None:
                group["weight_decay"] = weight_decay * group.get("decay_scale", 1.0)
        norm: Any = None
        if self.stage == 0:
            for parameter in self._trained:
                if parameter.grad is None:  # of what this step did not use: it decays as on several processes, which fill it in
                    parameter.grad = torch.zeros_like(parameter)
            asked = self._parts if by_depth else {}
            self._gradient_norms = norms({name: [_gradient(each) for each in part] for name, part in asked.items()})
            norm = nn.utils.clip_grad_norm_(self._trained, self.clip_norm or float("inf"))
            # torch's fused optimisers then change nothing.
            self.inner_optimiser.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.deepspeed.step()
        if self._fixed and self._compiled and self._compiled.replays:
            self._fixed.clear()
        else:
            self._fixed = None
        if norm is None:
            norm = self.deepspeed.get_global_grad_norm()
        if self.stage in (1, 2) and not self._state_linked and self.inner_optimiser.state:  # none after a first step that was skipped
            # DeepSpeed links parameters to their moments after the first group's first step, when later groups have none yet: once more.
            self.optimiser._hp_optimizer_states_linked = False
            self.optimiser._lazy_init_hp_params_optimizer_state()
            self._state_linked = True
        return norm

    def train(self, mode: bool) -> None:
        self.deepspeed.train(mode)

    def close(self) -> None:
        """After the last use, where another engine follows in this process: hooks and buffers are given back, and what was compiled is forgotten,
        as torch.compile counts the models that share a code and beyond a few no longer compiles."""
        self.deepspeed.destroy()
        if self._exchange:
            self._exchange.close()
        if self._compiled:
            torch.compiler.reset()

    # The state by parameter, whole, which ZeRO keeps in flat pieces on all ranks.  The getters and setters are collective at the stages named.

    @property
    def moments(self) -> tuple[str, ...]:
        """torch's names of what the optimiser keeps for each parameter."""
        return ("momentum_buffer",) if isinstance(self.inner_optimiser, torch.optim.SGD) else ("exp_avg", "exp_avg_sq")

    @staticmethod
    def shape_of(parameter: nn.Parameter) -> torch.Size:
        return getattr(parameter, "ds_shape", parameter.shape)  # at ZeRO-3 a parameter is empty between uses

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """The module's own copy of it.  Collective at ZeRO-3."""
        if self.stage < 3:
            return parameter
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()

    def gathered(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """While it lasts these are whole, to be read.  Collective at ZeRO-3."""
        if self.stage < 3:
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        return GatheredParameters(list(parameters))

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """{"weight": float32, moment: float32 ...}; of a frozen parameter its weight alone.  Collective at ZeRO 1-3."""
        if not parameter.requires_grad:
            return {"weight": self.whole(parameter)}
        if self.stage == 0:
            state = self.inner_optimiser.state[parameter]
            return {"weight": parameter, **{kind: state[kind] for kind in self.moments}}
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        return {
            "weight": safe_get_full_fp32_param(parameter),
            **{kind: safe_get_full_optimizer_state(parameter, kind) for kind in self.moments},
        }

    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Collective at ZeRO-3."""
        if self.stage and parameter.requires_grad:
            from deepspeed.utils import safe_set_full_fp32_param

            with padded(parameter, value) as whole:
                safe_set_full_fp32_param(parameter, whole)
        # The setters leave the module's own copy as it was.
        if self.stage == 3:
            from deepspeed.runtime.zero import GatheredParameters

            with GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                parameter.copy_(value)
        else:
            with torch.no_grad():
                parameter.copy_(value)

    def set_moment(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Once a step has created the state."""
        if self.stage == 0:
            self.inner_optimiser.state[parameter][kind].copy_(value)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        with padded(parameter, value) as whole:
            safe_set_full_optimizer_state(parameter, whole, kind)

    def set_steps(self, steps: int) -> None:
        """How many steps the optimiser has taken."""
        for state in self.inner_optimiser.state.values():
            if "step" in state:  # SGD counts none
                state["step"] = torch.full_like(torch.as_tensor(state["step"], dtype=torch.float32), steps)


@contextmanager
def padded(parameter: nn.Parameter, value: Tensor) -> Iterator[Tensor]:
    """A value as DeepSpeed's setters can take it.  ZeRO-3 keeps equal pieces on all ranks, the last ones padded with zeros; its setters cut a piece out of
    what has no padding, which fails where the number of ranks does not divide that of the parameter's elements."""
    if not hasattr(parameter, "ds_tensor"):
        yield value
        return
    inner: Any = parameter
    own, with_padding = inner.ds_numel, inner.ds_tensor.ds_numel * dist.get_world_size()
    inner.ds_numel = with_padding  # which the setters compare
    try:
        yield nn.functional.pad(value.flatten(), (0, with_padding - own))
    finally:
        inner.ds_numel = own


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _precisions(system: SystemConfig) -> dict[str, Any]:
    """DeepSpeed's settings for the precision of matrix products and of the gradients that processes exchange.

    Under autocast ZeRO takes the latter from a list of module classes (null: linear layers and convolutions, in autocast's bfloat16, whatever
    communication_data_type says); everything else does from communication_data_type.  Parameters, their gradients and moments are float32.
    """
    reduced = system.gradient_precision == "bf16"
    autocast: dict[str, Any] = {"enabled": system.precision == "bf16", "dtype": "bfloat16"}
    if not reduced:
        autocast["lower_precision_safe_modules"] = []
    return {"torch_autocast": autocast, "communication_data_type": system.gradient_precision}


DECIDED = {  # of DeepSpeed's settings: what mpp has instead
    "train_batch_size": "data.global_batch",
    "train_micro_batch_size_per_gpu": "system.micro_batch_max",
    "gradient_accumulation_steps": "system.micro_batch_max",
    "gradient_clipping": "optim.clip_norm",
    "zero_optimization.stage": "system.zero_stage",
    "torch_autocast": "system.precision and system.gradient_precision",
    "bf16": "system.precision",
    "fp16": "system.precision",
    "communication_data_type": "system.gradient_precision",
    "prescale_gradients": "system.gradient_precision",
    "gradient_predivide_factor": "system.gradient_precision",
    "data_types": "system.gradient_precision",
    "optimizer": "the optim section",
    "scheduler": "the optim section",
}


def _merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """`system.deepspeed` laid over our settings; what mpp itself decides is refused."""
    merged = dict(ours)
    for key, value in theirs.items():
        inner = [f"{key}.{name}" for name in value] if isinstance(value, dict) else []
        for name in (key, *inner):
            if name in DECIDED:
                raise ConfigError(f"system.deepspeed.{name} is decided by mpp; set {DECIDED[name]} instead")
        if key in ours and isinstance(value, dict) != isinstance(ours[key], dict):
            raise ConfigError(
                f"system.deepspeed.{key}={value!r} must be {'a section with keys inside' if isinstance(ours[key], dict) else 'one value'}"
            )
        merged[key] = {**ours.get(key, {}), **value} if isinstance(value, dict) else value
    return merged
