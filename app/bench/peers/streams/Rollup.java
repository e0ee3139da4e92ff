import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectWriter;
import java.time.Duration;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.Suppressed;
import org.apache.kafka.streams.kstream.TimeWindowedKStream;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.state.WindowStore;

/**
 * Tumbling windows per device, one final row each: RocksDB window store with its changelog.
 *
 * <p>The stock cached store under suppress(untilWindowCloses): the record cache spares RocksDB and the changelog most
 * updates. EmitStrategy.onWindowClose would turn it off.
 */
public final class Rollup {
    private static final ObjectWriter WRITER = new ObjectMapper().writerFor(Row.class);

    private Rollup() {}

    /** One final window as JSON. */
    public record Row(
        String device_id, String metric, long window_start, long window_ms,
        double open, double high, double low, double close, long count, double sum) {}

    static byte[] written(Windowed<String> key, Ohlc state) {
        try {
            long start = key.window().start();
            return WRITER.writeValueAsBytes(new Row(
                key.key(), state.metric, start, key.window().end() - start,
                state.open, state.high, state.low, state.close, state.count, state.sum));
        } catch (com.fasterxml.jackson.core.JsonProcessingException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Side side = new Side(arguments);
        Serde<String> text = Serdes.String();
        StreamsBuilder builder = new StreamsBuilder();
        TimeWindowedKStream<String, byte[]> windows = builder
            .stream(side.text("input"), Consumed.with(text, Serdes.ByteArray()))
            .groupByKey(Grouped.with(text, Serdes.ByteArray()))
            .windowedBy(TimeWindows.ofSizeWithNoGrace(Duration.ofMillis(side.spec.get("window_ms").asLong())));
        KTable<Windowed<String>, Ohlc> table = windows.aggregate(
            Ohlc::new,
            (device, json, state) -> {
                side.handled();
                return state.with(Sample.read(json).metrics[0]);
            },
            Materialized.<String, Ohlc, WindowStore<Bytes, byte[]>>as("windows")
                .withKeySerde(text).withValueSerde(Ohlc.serde()));
        table.suppress(Suppressed.untilWindowCloses(Suppressed.BufferConfig.unbounded()))
            .toStream()
            .map((key, state) -> KeyValue.pair(key.key(), written(key, state)))
            .to(side.text("output"), Produced.with(text, Serdes.ByteArray()));
        side.run(builder.build());
    }
}
