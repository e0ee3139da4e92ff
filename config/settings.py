"""The settings of the service: every section, written out."""

from pydantic import model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config.cluster import ClusterSettings
from config.device import DeviceSettings
from config.embedded import EmbeddedSettings
from config.health import HealthSettings
from config.http import HttpSettings
from config.kafka import KafkaSettings
from config.log import LogSettings
from config.metrics import MetricsSettings
from config.producer import ProducerSettings
from config.profiling import ProfilingSettings
from config.replay import ReplaySettings
from config.rollup import RollupSettings
from config.section import setting
from config.signals import SignalsSettings
from config.sinks import SinksSettings
from config.spool import SpoolSettings
from config.supervisor import SupervisorSettings
from config.tables import TablesSettings
from config.tasks import TasksSettings
from config.tracing import TracingSettings
from config.transform import TransformSettings
from config.triggers import TriggersSettings
from config.workflow import WorkflowSettings


class Settings(BaseSettings):
    """The settings in force. `config.load.load` builds them; the bare constructor gives the defaults."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    kafka: KafkaSettings = setting(KafkaSettings(), description="The connection to Kafka.")
    embedded: EmbeddedSettings = setting(EmbeddedSettings(), description="The embedded Kafka broker.")
    device: DeviceSettings = setting(DeviceSettings(), description="The simulated fleet.")
    replay: ReplaySettings = setting(ReplaySettings(), description="The replay of recorded data.")
    producer: ProducerSettings = setting(ProducerSettings(), description="The batched producer.")
    spool: SpoolSettings = setting(SpoolSettings(), description="Readings on disk while the broker is away.")
    transform: TransformSettings = setting(TransformSettings(), description="Validation and deduplication.")
    rollup: RollupSettings = setting(RollupSettings(), description="Event-time windows.")
    signals: SignalsSettings = setting(SignalsSettings(), description="The rules over readings and rollups.")
    sinks: SinksSettings = setting(SinksSettings(), description="Where rows are written to.")
    tables: TablesSettings = setting(TablesSettings(), description="State on disk.")
    tasks: TasksSettings = setting(TasksSettings(), description="What carries out the tasks of workflows.")
    workflow: WorkflowSettings = setting(WorkflowSettings(), description="The workflow engine.")
    triggers: TriggersSettings = setting(TriggersSettings(), description="What starts workflows without being asked.")
    http: HttpSettings = setting(HttpSettings(), description="The HTTP API.")
    health: HealthSettings = setting(HealthSettings(), description="The health port.")
    metrics: MetricsSettings = setting(MetricsSettings(), description="The Prometheus port.")
    profiling: ProfilingSettings = setting(ProfilingSettings(), description="The profiling port.")
    supervisor: SupervisorSettings = setting(SupervisorSettings(), description="One process a role.")
    cluster: ClusterSettings = setting(ClusterSettings(), description="This node among the others.")
    tracing: TracingSettings = setting(TracingSettings(), description="Traces of workflows.")
    log: LogSettings = setting(LogSettings(), description="The log.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic passes it by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what `config.load` merged, so that nothing else reads the environment."""
        return (init_settings,)

    @model_validator(mode="after")
    def _ports_differ(self) -> "Settings":
        taken: dict[int, str] = {}
        ports = [("http", self.http.port), ("health", self.health.port), ("metrics", self.metrics.port)]
        if self.profiling.enabled:
            ports.append(("profiling", self.profiling.port))
        for section, port in ports:
            if port and port in taken:
                raise ValueError(f"{taken[port]}.port and {section}.port are both {port}; give one of them another")
            taken[port] = section
        return self
