import com.fasterxml.jackson.annotation.JsonInclude;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.ObjectWriter;

/** One device sample; public fields, which Jackson reads and writes without reflection on accessors. */
public final class Sample {
    private static final ObjectMapper MAPPER = new ObjectMapper();
    private static final ObjectReader READER = MAPPER.readerFor(Sample.class);
    private static final ObjectWriter WRITER = MAPPER.writerFor(Sample.class);

    public String device_id;
    public long session_id;
    public long seq;
    public long source_timestamp;
    public long recorded_timestamp;
    public boolean is_historical;
    public Metric[] metrics;
    @JsonInclude(JsonInclude.Include.NON_NULL)
    public String site;

    /** One metric of a sample. */
    public static final class Metric {
        public String metric;
        public double value;
        public String unit;
        public String quality;
        public int status_code;
    }

    static Sample read(byte[] json) {
        try {
            return READER.readValue(json);
        } catch (java.io.IOException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }

    byte[] written() {
        try {
            return WRITER.writeValueAsBytes(this);
        } catch (com.fasterxml.jackson.core.JsonProcessingException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }
}
