import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;

/** What both applications share: the specification, the settings, the count of records and the end. */
final class Side {
    final JsonNode spec;
    private final AtomicLong handled = new AtomicLong();
    private final CountDownLatch finished = new CountDownLatch(1);
    private final long markAt;
    private final long endAt;

    Side(String[] arguments) throws Exception {
        spec = new ObjectMapper().readTree(new File(arguments[arguments.length - 1]));
        markAt = spec.path("mark_at_records").asLong(-1);
        endAt = spec.path("end_at_records").asLong(-1);
    }

    String text(String field) {
        return spec.get(field).asText();
    }

    /** One more record was handled; tells when a fifth was, and ends the application after the last. */
    void handled() {
        long count = handled.incrementAndGet();
        if (count == markAt) {
            say("{\"event\": \"mark\", \"at_ms\": " + System.currentTimeMillis() + "}");
        } else if (count == endAt) {
            finished.countDown();
        }
    }

    static void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    /** Stock settings: one thread, at_least_once, commits every 30 s, 10 MB record cache, RocksDB as shipped. */
    void run(Topology topology) throws InterruptedException {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, text("group"));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, text("bootstrap"));
        settings.put(StreamsConfig.STATE_DIR_CONFIG, new File("state").getAbsolutePath());
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put("auto.offset.reset", "earliest");
        KafkaStreams streams = new KafkaStreams(topology, settings);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
            return null;
        });
        streams.start();
        say("{\"event\": \"ready\"}");
        finished.await();
        // Closing commits: what the record cache still holds is written to the state, the changelog and the output.
        streams.close();
        say("{\"event\": \"closed\"}");
    }
}
