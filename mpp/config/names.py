"""What the field calls the knobs that mpp calls otherwise: an unknown key leads to the one that was meant.

Names as MAE's, timm's, torch's, transformers' and Lightning's command lines have them.
"""

import difflib
from collections.abc import Collection

_IN_SAMPLES = "counted in samples: epochs x images"
_DERIVED = "of one process at once; accumulation is the smallest that makes up data.global_batch"

# Our key, in the order of preference where programs differ -> what others call it (last part of a key), and what to know about ours.
OTHERS: dict[tuple[str, ...], tuple[str, str]] = {
    ("optim.base_lr", "linear.learning_rates"): ("lr learning_rate base_learning_rate blr max_lr peak_lr init_lr alpha", ""),
    ("optim.start_lr",): ("warmup_lr warmup_init_lr warmup_start_lr lr_start initial_lr", ""),
    ("optim.schedule",): ("sched lr_scheduler lr_schedule lr_scheduler_type lr_policy lr_decay_style decay_style", "cosine, wsd or constant"),
    ("optim.cosine_share",): ("truncate_cos ipe_scale", "a share of the half cosine"),
    ("optim.cooldown_samples",): ("cooldown cooldown_epochs cooldown_steps num_decay_steps decay_epochs annealing_steps", "of optim.schedule=wsd, in samples"),
    ("optim.cooldown_shape",): ("decay_type cooldown_type", ""),
    ("optim.final_weight_decay",): ("weight_decay_end final_wd wd_end", ""),
    ("optim.norm_decay_scale",): ("layernorm_wd_mult norm_weight_decay norm_weight_decay_scale", ""),
    ("optim.patch_embed_lr_scale",): ("patch_embed_lr_mult patch_embed_lr", ""),
    ("target.ema_start",): ("momentum_teacher ema teacher_momentum moco_m", "of targets with a teacher"),
    ("budget",): ("time max_time time_limit minutes hours", "such as 30min"),
    ("branch_from",): ("branch fork_from fork trunk", ""),
    ("checkpoint.keep_at_samples",): ("keep_every keep_at milestones", ""),
    ("optim.final_lr",): ("min_lr end_lr lr_min eta_min lr_final warmdown_lr", ""),
    ("optim.lr_batch",): ("lr_base_size lr_scale scale_lr lr_scaling base_batch_size", ""),
    ("optim.epochs", "linear.epochs"): ("epochs epoch num_epochs max_epochs num_train_epochs n_epochs", ""),
    ("optim.total_samples",): (
        "steps max_steps total_steps num_steps iterations max_iters train_steps samples",
        "counted in samples: steps x data.global_batch",
    ),
    ("optim.steps",): ("max_steps total_steps num_steps iterations max_iters train_steps", ""),
    ("optim.warmup_epochs",): ("warmup warmup_ratio num_warmup_epochs", ""),
    ("optim.warmup_samples",): ("warmup warmup_epochs warmup_steps warmup_iters warmup_ratio num_warmup_steps num_warmup_epochs", _IN_SAMPLES),
    ("optim.warmup_steps",): ("num_warmup_steps warmup_iters", ""),
    ("optim.weight_decay", "linear.weight_decay"): ("wd decay l2", ""),
    ("optim.clip_norm",): ("clip_grad grad_clip gradient_clipping max_grad_norm clip gradient_clip_val clip_grad_norm", ""),
    ("optim.betas",): ("opt_betas beta beta1 beta2 adam_beta1 adam_beta2 adam_betas", ""),
    ("optim.eps",): ("opt_eps epsilon adam_epsilon adam_eps", ""),
    ("optim.ema",): ("model_ema ema_decay model_ema_decay", ""),
    ("optim.name",): ("opt optimizer optimiser", ""),
    ("data.global_batch", "linear.batch"): (
        "batch_size batchsize bs batch total_batch_size train_batch_size effective_batch_size global_batch_size batch_size_total", "of all processes together",
    ),
    ("system.micro_batch_max", "features.batch"): (
        "micro_batch micro_batch_size train_micro_batch_size_per_gpu batch_size_per_gpu per_gpu_batch_size per_device_train_batch_size "
        "batch_per_gpu accum_iter accumulation accumulate grad_accum grad_accum_steps gradient_accumulation_steps accumulate_grad_batches",
        _DERIVED,
    ),
    ("mask.ratio",): ("mask_ratio masking_ratio mask_rate mask_prob mask_percentage", "a share: 0.75 hides 75 % of the patches"),
    ("model.image_size", "model.resolution", "features.resolution"): ("img_size image_size input_size imgsz crop_size train_size img_dim", ""),
    ("model.patch_size",): ("patch patchsize", ""),
    ("model.arch",): ("model backbone encoder architecture model_name vit", ""),
    ("model.width",): ("width encoder_width encoder_embed_dim encoder_dim embed_dim hidden_size hidden_dim dim embedding_dim d_model", ""),
    ("model.depth",): ("depth encoder_depth num_layers layers num_hidden_layers blocks n_layers", ""),
    ("model.heads",): ("heads encoder_heads encoder_num_heads num_heads num_attention_heads n_heads", ""),
    ("model.class_tokens",): ("cls_token use_cls_token num_cls_tokens n_cls_tokens global_pool", "a number: 0 for none"),
    ("model.registers",): ("reg_tokens num_reg_tokens register_tokens num_register_tokens n_registers num_registers", ""),
    ("model.position",): ("pos_embed pos_embedding position_embedding rope use_rope rotary", ""),
    ("model.layer_scale",): ("init_values layerscale layer_scale_init_value layerscale_init ls_init_value", ""),
    ("model.qk_norm",): ("use_qk_norm qk_normalization", ""),
    ("model.pooling", "features.pooling"): ("global_pool pool pool_type", ""),
    ("model.drop_path",): ("drop_path_rate stochastic_depth sd_rate droppath", ""),
    ("decoder.depth",): ("decoder_depth decoder_layers decoder_num_layers decoder_num_hidden_layers", "of decoder.name=transformer"),
    ("decoder.width",): ("decoder_dim decoder_embed_dim decoder_hidden_size decoder_width", "of decoder.name=transformer"),
    ("decoder.heads",): ("decoder_num_heads decoder_num_attention_heads", "of decoder.name=transformer"),
    ("target.normalise",): ("norm_pix_loss norm_pix normalize norm_target normalize_target", "of target.name=pixels"),
    ("target.loss",): ("loss_type criterion loss_fn", "of target.name=pixels"),
    ("data.shards", "train"): (
        "data data_path data_dir data_root dataset dataset_dir train_dir train_data train_path train_shards shards_path root path imagenet", "",
    ),
    ("data.weights",): ("mixture_weights sampling_weights dataset_weights mixing_weights proportions probs mix_weights ratios", "one for each of data.shards"),
    ("test",): ("val val_data val_dir val_path validation eval_data test_data test_dir", ""),
    ("data.crop_scale", "augment.crop_scale", "mae.crop_scale"): ("scale min_scale crop_min crop_area rrc_scale min_crop random_crop_scale", "[low, high]: shares of the area"),
    ("data.crop_ratio", "augment.crop_ratio"): ("aspect aspect_ratio rrc_ratio", ""),
    ("data.flip", "augment.flip"): ("hflip horizontal_flip random_flip", ""),
    ("data.vertical_flip", "augment.vertical_flip"): ("vflip random_vertical_flip", ""),
    ("data.turns", "augment.turns"): ("rot90 rotate90 random_rot90 random_rotate90 right_angle_rotations dihedral", "quarter turns"),
    ("data.mean",): ("image_mean pixel_mean normalize_mean", ""),
    ("data.std",): ("image_std pixel_std normalize_std", ""),
    ("data.views",): ("repeated_sampling repeats repeated_aug aug_repeats", ""),
    ("data.holdout_samples", "data.holdout_fraction", "holdout_fraction"): ("val_fraction val_split val_samples num_val validation_split", ""),
    ("data.labels_per_class", "few_shot.shots"): ("shots shot n_shot few_shot num_shots", ""),
    ("data.label_fraction",): ("label_ratio subset label_percent semi", ""),
    ("augment.rand_augment",): ("aa auto_augment autoaugment randaugment randaug", ""),
    ("augment.erasing",): ("reprob random_erasing erase re_prob", ""),
    ("augment.mix_share",): ("mixup_prob mix_prob", ""),
    ("augment.cutmix_share",): ("mixup_switch_prob switch_prob", ""),
    ("augment.smoothing",): ("label_smoothing", ""),
    ("optim.layer_decay",): ("layer_decay lld llrd layerwise_lr_decay", ""),
    ("optim.momentum",): ("sgd_momentum", ""),
    ("system.workers", "features.workers"): ("num_workers n_workers dataloader_num_workers loader_workers", ""),
    ("system.precision", "features.precision"): ("amp amp_dtype dtype fp16 bf16 mixed_precision half autocast", "bf16 or fp32"),
    ("system.zero_stage",): ("zero stage zero_optimization deepspeed_stage", ""),
    ("system.compile",): ("torch_compile torchcompile", ""),
    ("system.cuda_graphs",): ("cudagraphs cuda_graph reduce_overhead", ""),
    ("system.recompute",): ("activation_checkpointing gradient_checkpointing grad_checkpointing checkpoint_activations", "none, selective or full"),
    ("system.fused_attention",): ("flash flash_attn flash_attention sdpa", ""),
    ("run_dir", "out"): ("output_dir out_dir output log_dir save_dir workdir work_dir output_path exp_dir default_root_dir logdir", ""),
    ("init_from", "encoder"): ("checkpoint_path ckpt ckpt_path pretrained finetune weights resume_from init_checkpoint load_from pretrained_weights model_path", ""),
    ("resume",): ("resume_from auto_resume resume_from_checkpoint", "auto, must or a step"),
    ("log.every_steps",): ("log_interval log_every print_freq logging_steps log_freq log_every_n_steps", ""),
    ("checkpoint.every_samples", "checkpoint.every_minutes"): ("save_every save_freq save_interval save_steps ckpt_interval", ""),
    ("checkpoint.keep",): ("save_total_limit keep_last save_top_k keep_checkpoints", ""),
    ("knn.k",): ("nb_knn neighbors neighbours n_neighbors", ""),
    ("knn.temperatures",): ("temperature knn_t tau", ""),
    ("logistic.strengths",): ("c cost reg regularization", "scikit-learn's C"),
    ("optim",): ("optimizer optimiser train training trainer schedule scheduler solver", ""),
    ("system",): ("deepspeed engine hardware runtime dist", ""),
    ("mask",): ("masking masks", ""),
}  # fmt: skip


def nearest(key: str, known: Collection[str]) -> str:
    """Words that lead from an unknown key to the known one that was meant, or to --print-config where none is near.

    key: dotted; known: every key of a program, its sections included.
    """
    meant, remark = _by_other_name(key, known) or (_by_spelling(key, known), "")
    if meant is None:
        return "; --print-config shows all that there are"
    return f"; the nearest known one is '{meant}'" + (f" ({remark})" if remark else "")


def _by_other_name(key: str, known: Collection[str]) -> tuple[str, str] | None:
    *sections, last = key.lower().replace("-", "_").split(".")
    for name in ("_".join([*sections[-1:], last]), last):  # decoder.embed_dim is the decoder's, not the model's
        for ours, (others, remark) in OTHERS.items():
            if name in others.split() or key in ours:  # the other programs' own names too
                for candidate in ours:
                    if candidate in known:
                        return candidate, remark if candidate == ours[0] else ""
        same = [candidate for candidate in known if name in (candidate.rpartition(".")[2], candidate.replace(".", "_"))]
        if len(same) == 1:  # right but for its section, or with _ for the dot
            return same[0], ""
    return None


def _by_spelling(key: str, known: Collection[str]) -> str | None:
    section, dot, _ = key.rpartition(".")
    sections = {candidate.rpartition(".")[0] for candidate in known} - {""}
    fields = sorted(set(known) - sections)
    if section in sections:  # its section is right: look there first
        inside = difflib.get_close_matches(key, [field for field in fields if field.startswith(section + ".")], n=1, cutoff=0.75)
        if inside:
            return inside[0]
    found = difflib.get_close_matches(key, fields if dot else sorted(known), n=1, cutoff=0.6)
    if not found:
        ends = {field.rpartition(".")[2]: field for field in reversed(fields)}
        last = difflib.get_close_matches(key.rpartition(".")[2], ends, n=1, cutoff=0.7)
        found = [ends[last[0]]] if last else []
    return found[0] if found else None
