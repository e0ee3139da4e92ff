import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;

/** Map-and-forward: parse, degrees Celsius to Fahrenheit, add the site, write. */
public final class Forward {
    private Forward() {}

    static byte[] converted(byte[] json) {
        Sample sample = Sample.read(json);
        Sample.Metric metric = sample.metrics[0];
        metric.value = metric.value * 1.8 + 32;
        metric.unit = "FAH";
        sample.site = "north";
        return sample.written();
    }

    public static void main(String[] arguments) throws Exception {
        Side side = new Side(arguments);
        StreamsBuilder builder = new StreamsBuilder();
        builder.stream(side.text("input"), Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()))
            .mapValues(Forward::converted)
            .to(side.text("output"), Produced.with(Serdes.ByteArray(), Serdes.ByteArray()));
        side.run(builder.build());
    }
}
