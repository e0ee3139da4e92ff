import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;

/** One window's state, stored as five doubles, a count and the metric's name. */
final class Ohlc {
    String metric;
    double open;
    double high;
    double low;
    double close;
    double sum;
    long count;

    Ohlc with(Sample.Metric reading) {
        double value = reading.value;
        if (count == 0) {
            metric = reading.metric;
            open = high = low = value;
        } else {
            high = Math.max(high, value);
            low = Math.min(low, value);
        }
        close = value;
        sum += value;
        count++;
        return this;
    }

    static Serde<Ohlc> serde() {
        return Serdes.serdeFrom((topic, state) -> written(state), (topic, bytes) -> read(bytes));
    }

    private static byte[] written(Ohlc state) {
        if (state == null) {
            return null;
        }
        byte[] name = state.metric.getBytes(StandardCharsets.UTF_8);
        return ByteBuffer.allocate(48 + name.length)
            .putDouble(state.open).putDouble(state.high).putDouble(state.low).putDouble(state.close)
            .putDouble(state.sum).putLong(state.count).put(name).array();
    }

    private static Ohlc read(byte[] bytes) {
        if (bytes == null) {
            return null;
        }
        ByteBuffer buffer = ByteBuffer.wrap(bytes);
        Ohlc state = new Ohlc();
        state.open = buffer.getDouble();
        state.high = buffer.getDouble();
        state.low = buffer.getDouble();
        state.close = buffer.getDouble();
        state.sum = buffer.getDouble();
        state.count = buffer.getLong();
        state.metric = new String(bytes, 48, bytes.length - 48, StandardCharsets.UTF_8);
        return state;
    }
}
