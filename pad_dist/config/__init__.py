"""The run configuration: one typed object, every key described where it is declared."""

from pad_dist.config.alignments import AlignmentConfig, FineGrainedConfig, InfoNceConfig, KernelName, MkMmdConfig
from pad_dist.config.backbones import BackboneConfig, CaserConfig, Gru4RecConfig, LigrConfig, SasRecConfig
from pad_dist.config.base import Section
from pad_dist.config.data import Columns, DataConfig, InputFormat, SplitConfig, SyntheticConfig
from pad_dist.config.experts import (
    EXPERTS,
    AlignedConfig,
    ExpertConfig,
    ExpertName,
    IdConfig,
    ItemKnnConfig,
    TextExpertConfig,
)
from pad_dist.config.losses import (
    BceConfig,
    GbceConfig,
    LossConfig,
    NegativeSampling,
    SampledSoftmaxConfig,
    SoftmaxConfig,
)
from pad_dist.config.methods import MethodName
from pad_dist.config.model import ModelConfig, ProjectorConfig
from pad_dist.config.run import Config
from pad_dist.config.sparse import HashedConfig, SparseConfig
from pad_dist.config.stages import (
    AlignConfig,
    AuxiliaryConfig,
    DisentangleConfig,
    GateName,
    RlmrecConConfig,
    RlmrecGenConfig,
    StageConfig,
    StageName,
)
from pad_dist.config.text import ReduceConfig, TextConfig
from pad_dist.config.training import CheckpointConfig, EvaluationConfig, TrainingConfig

__all__ = [
    "EXPERTS",
    "AlignConfig",
    "AlignedConfig",
    "AlignmentConfig",
    "AuxiliaryConfig",
    "BackboneConfig",
    "BceConfig",
    "CaserConfig",
    "CheckpointConfig",
    "Columns",
    "Config",
    "DataConfig",
    "DisentangleConfig",
    "EvaluationConfig",
    "ExpertConfig",
    "ExpertName",
    "FineGrainedConfig",
    "GateName",
    "GbceConfig",
    "Gru4RecConfig",
    "HashedConfig",
    "IdConfig",
    "InfoNceConfig",
    "InputFormat",
    "ItemKnnConfig",
    "KernelName",
    "LigrConfig",
    "LossConfig",
    "MethodName",
    "MkMmdConfig",
    "ModelConfig",
    "NegativeSampling",
    "ProjectorConfig",
    "ReduceConfig",
    "RlmrecConConfig",
    "RlmrecGenConfig",
    "SampledSoftmaxConfig",
    "SasRecConfig",
    "Section",
    "SoftmaxConfig",
    "SparseConfig",
    "SplitConfig",
    "StageConfig",
    "StageName",
    "SyntheticConfig",
    "TextConfig",
    "TextExpertConfig",
    "TrainingConfig",
]
