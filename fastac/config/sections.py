"""The settings by section. A field's help and limits stand beside its default."""

from __future__ import annotations

from dataclasses import dataclass

from fastac.config.fields import Section, key

__all__ = ["DataConfig", "LossConfig", "ModelConfig", "OptimizerConfig", "RunConfig"]


@dataclass(frozen=True)
class DataConfig(Section):
    dataset: str = key(
        "digits",
        "digits, fashion-mnist, cifar10, cifar100, svhn, svhn-extra, folder, webdataset, tfrecord or npz",
    )
    data_dir: str | None = key(None, "where the data set's files are", on_resume=True)
    labels: str | None = key(None, "file that replaces the training labels by id: .npy, .csv or FILE.npz:KEY")
    label_truth: str = key(
        "none",
        "what is true where `labels` replaces the labels: the data set's own labels, or unknown",
        choices=("none", "dataset"),
    )
    exclude: str | None = key(None, "file of the ids of samples to leave out of training: .csv or .npy")
    noise: str = key(
        "none",
        "wrong labels to inject into the training set; the injected truth is kept to score detection",
        choices=("none", "uniform", "pair", "asymmetric"),
    )
    noise_rate: float = key(0.0, "share of the training labels to flip", low=0, below=1)
    noise_seed: int = key(0, "seed of the injected noise", low=0)
    threshold_set: int = key(
        0,
        "1 or 2: a run of AUM's threshold samples, first or second set, which get the label of a class that does not "
        "exist; 0: none",
        low=0,
        high=2,
    )
    train_limit: int | None = key(None, "train on the first so many images only", low=1)
    image_size: int | None = key(None, "side in pixels that image files are brought to", low=4)
    loader: str = key(
        "torch",
        "what makes batches of image files: torch, Pillow in this process or its workers; dali, NVIDIA's DALI; "
        "synthetic, noise in the images' place, to time the rest",
        choices=("torch", "dali", "synthetic"),
    )
    dali_device: str = key(
        "auto",
        "where DALI decodes: gpu (hardware or hybrid JPEG decoder), cpu, or auto, where the network trains",
        choices=("auto", "cpu", "gpu"),
    )
    augment: str = key(
        "none", "crop of the training images", choices=("none", "crop", "crop-flip", "imagenet")
    )
    aa: str = key(
        "none",
        "policy applied after the crop: autoaugment, fast-autoaugment or pba (the data set's own, or another's: "
        "autoaugment-cifar10), randaugment-nN-mM, trivialaugment",
    )
    cutout: int = key(0, "side in pixels of the square that Cutout blanks after the policy; 0: none", low=0)
    reprob: float = key(0.0, "probability of random erasing", low=0, high=1)
    on_bad_image: str = key("stop", "what an unreadable image does", choices=("stop", "skip"))
    batch_size: int = key(128, "images a batch on each rank", low=1)
    drop_last: bool = key(
        True,
        "leave out an epoch's last, smaller batch; its mean would move α of a few rows as far as a batch's",
    )
    workers: int = key(
        0,
        "loader torch: processes that decode image files, 0: the training's own; loader dali: threads, 0: one a core",
        low=0,
        on_resume=True,
    )


@dataclass(frozen=True)
class ModelConfig(Section):
    model: str = key(
        "cnn",
        "cnn; CIFAR's resnet20/32/44/56, wrn-DEPTH-WIDTH, shake-shake-26-2xWIDTHd, pyramidnet-DEPTH-ALPHA[-shakedrop], "
        "and with -imagenet at the end for images from 64x64 on; resnet50, resnet50-zero-init; timm:NAME, "
        "torchvision:NAME",
    )
    initial_checkpoint: str | None = key(
        None,
        "file or run folder whose network's weights training starts from: .safetensors, .pt, or a run",
        on_resume=True,
    )
    channels_last: bool = key(
        False, "memory format of images and weights that tensor cores read", on_resume=True
    )
    sync_bn: bool = key(False, "batch norm over the rows of all ranks (CUDA)")
    model_ema: bool = key(False, "keep a moving average of the weights, and test it beside the network")
    model_ema_decay: float = key(0.9998, "share of the average that stays at each step", above=0, below=1)


@dataclass(frozen=True)
class LossConfig(Section):
    loss: str = key(
        "ac1",
        "ac1: an offset for each sample and class; ac2: one for each sample; ce: plain cross entropy",
        choices=("ce", "ac1", "ac2"),
    )
    alpha_weight_decay: float = key(5e-5, "weight decay of the offsets α", low=0)
    alpha_lr_scale: float = key(1.0, "α's learning rate as a multiple of the network's", above=0)
    alpha_history: str = key(
        "exact",
        "exact: α with its momentum (twice the memory); folded: α alone, an approximation",
        choices=("exact", "folded"),
    )
    alpha_dtype: str = key("fp32", "how α is stored; bf16 rounds stochastically", choices=("fp32", "bf16"))
    alpha_placement: str = key(
        "exchange",
        "several ranks: exchange, any rank draws any sample and α's rows travel; aligned, a rank draws only samples "
        "whose rows it owns, and nothing does",
        choices=("exchange", "aligned"),
    )
    alpha_storage: str = key(
        "device", "where α is kept: device, or host memory", choices=("device", "host"), on_resume=True
    )
    alpha_wire_dtype: str = key(
        "fp32",
        "what α's rows and gradients travel as, and come from host memory",
        choices=("fp32", "bf16"),
    )
    label_smoothing: float = key(0.0, "label smoothing of the training loss", low=0, below=1)
    update: str = key(
        "step",
        "when α moves: with the optimizer's step, or fused into the forward pass",
        choices=("step", "forward"),
    )
    dynamics: bool = key(True, "record training dynamics (AUM, data maps, forgetting)")


@dataclass(frozen=True)
class OptimizerConfig(Section):
    epochs: int = key(10, "passes over the training set", low=1)
    short: float = key(
        1.0,
        "share of the epochs to train, with milestones and warm-up scaled alike; results of less than 1 say so",
        above=0,
        high=1,
    )
    opt: str = key(
        "sgd",
        "torch's SGD, fused on CUDA, or the FusedSGD of NVIDIA's apex",
        choices=("sgd", "fusedsgd"),
        on_resume=True,
    )
    lr: float = key(0.1, "learning rate of SGD", above=0)
    momentum: float = key(0.9, "momentum of SGD", low=0, below=1)
    nesterov: bool = key(False, "Nesterov momentum")
    weight_decay: float = key(1e-4, "weight decay of the network, except batch norm and biases", low=0)
    schedule: str = key("cosine", "learning rate by step", choices=("cosine", "multistep", "constant"))
    milestones: tuple[int, ...] = key((), "multistep: epochs that multiply the rate by gamma", low=1)
    gamma: float = key(0.1, "multistep: the factor", above=0)
    warmup_epochs: float = key(0.0, "epochs of linear warm-up before the schedule", low=0)
    clip_grad: float | None = key(None, "clip the norm of the network's gradient (α is not clipped)", above=0)
    grad_accum_steps: int = key(1, "batches summed into one step of the optimizer", low=1)
    amp_dtype: str = key("none", "autocast the network to this type", choices=("none", "bf16", "fp16"))
    torchcompile: bool = key(False, "torch.compile of the network and the loss")
    cuda_graphs: bool = key(False, "replay the network's passes as CUDA graphs: one launch each (one GPU)")

    @property
    def trained_epochs(self) -> int:
        """`epochs` scaled by `short`."""
        return max(1, round(self.epochs * self.short))

    @property
    def trained_milestones(self) -> tuple[float, ...]:
        """`milestones` in epochs, at the same share of the training as without `short`."""
        return tuple(epoch * self.trained_epochs / self.epochs for epoch in self.milestones)

    @property
    def trained_warmup_epochs(self) -> float:
        """`warmup_epochs`, as trained_milestones."""
        return self.warmup_epochs * self.trained_epochs / self.epochs


@dataclass(frozen=True)
class RunConfig(Section):
    recipe: str | None = key(
        None, "a recipe of the package by name, or the path of a TOML file, and variants: RECIPE+VARIANT"
    )
    seed: int = key(0, "seed of the network's start, the shuffles and the augmentation", low=0)
    device: str = key("auto", "where to train", choices=("auto", "cpu", "cuda"), on_resume=True)
    engine: str = key(
        "ddp",
        "what shares the network's training among ranks: DistributedDataParallel or DeepSpeed's ZeRO",
        choices=("ddp", "deepspeed"),
        on_resume=True,
    )
    zero_stage: int | None = key(
        None,
        "deepspeed: 1 shares out the optimizer's state, 2 gradients too, 3 parameters too (2 where none is given)",
        low=1,
        high=3,
        on_resume=True,
    )
    deepspeed_config: str | None = key(
        None, "deepspeed: a JSON file with more of its settings, in place of zero_stage", on_resume=True
    )
    dist_timeout: float = key(
        600.0, "seconds that a collective may wait for other ranks", above=0, on_resume=True
    )
    threads: int = key(0, "CPU threads of PyTorch; 0: its default", low=0, on_resume=True)
    deterministic: bool = key(False, "only deterministic kernels (the CPU's are)", on_resume=True)
    output: str = key("runs", "folder that holds the run folders", on_resume=True, stored=False)
    name: str | None = key(None, "the run folder's name (made from recipe, loss and seed)", stored=False)
    checkpoint_every: int = key(
        0, "steps between checkpoints; 0: one at each epoch's end", low=0, on_resume=True
    )
    checkpoint_hist: int = key(2, "how many checkpoints are kept", low=1, on_resume=True)
    log_interval: int = key(50, "steps between readings of the running metrics", low=1, on_resume=True)
    profile_steps: int = key(
        0,
        "write a trace of so many steps to the run's folder, of the first epoch after the start or a resume; 0: none",
        low=0,
        on_resume=True,
    )
    max_steps: int = key(0, "stop after so many steps, for trying out; 0: none", low=0, on_resume=True)
    score_history: bool = key(
        True, "keep each sample's AUM as of each epoch (2 bytes each) for the review page", on_resume=True
    )
    predict_train: bool = key(
        True,
        "end with a pass over the training images: what the network predicts for them is the suggested label; without "
        "it AC1's α suggests one, AC2 and ce none",
        on_resume=True,
    )
    issues_percent: float | None = key(
        None, "share of the training set in percent that issues.csv flags", above=0, high=100, on_resume=True
    )
    progress: bool = key(True, "a progress bar where stderr is a terminal", on_resume=True)
    tensorboard: bool = key(True, "write TensorBoard events", on_resume=True)
