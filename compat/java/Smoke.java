import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.SQLWarning;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;
import org.postgresql.core.BaseConnection;
import org.postgresql.util.PSQLException;
import org.postgresql.util.ServerErrorMessage;

/** The smoke program of pgjdbc: query modes, prepared statements, batches, cursors, COPY, threads. */
public final class Smoke {
  static final String SCHEMA = "compat_pgjdbc";
  private static final int LOCK = 70107;
  private static final int WORKERS = 20;
  private static final int TRANSACTIONS = 20;

  /** The texts of the statements that were prepared by query. */
  static final Set<String> TEXTS = new HashSet<>();

  static boolean failed;

  /** A part of the program, run on a connection of its own. */
  interface Part {
    void run(String name, Connection conn) throws Exception;
  }

  private Smoke() {}

  public static void main(String[] args) throws Exception {
    admin("drop schema if exists " + SCHEMA + " cascade", "create schema " + SCHEMA);
    for (String way :
        List.of("prepareThreshold=5", "prepareThreshold=1", "prepareThreshold=-1", "prepareThreshold=0", "preferQueryMode=simple",
            "preferQueryMode=extendedForPrepared", "preferQueryMode=extendedCacheEverything")) {
      part("queries " + way, way, Smoke::queries);
      part("batches " + way, way, Smoke::batches);
      part("large " + way, way, Smoke::large);
    }
    part("rewritten batches", "reWriteBatchedInserts=true", Smoke::batches);
    part("startup", "", Smoke::startup);
    part("transactions", "", Smoke::transactions);
    part("autosave", "autosave=always", Smoke::autosave);
    part("cursors", "", Smoke::cursors);
    part("copy", "", Smoke::copying);
    part("session", "", Smoke::session);
    part("cancel", "", Smoke::cancel);
    part("notify", "", Smoke::listening);
    part("concurrent", "", Smoke::concurrent);
    admin("drop schema " + SCHEMA + " cascade");
    if (failed) {
      System.exit(1);
    }
    System.out.println("done");
  }

  static void part(String name, String property, Part part) {
    try (Connection conn = connect(property)) {
      part.run(name, conn);
    } catch (Exception e) {
      failed = true;
      check(name, "FAILED: " + e);
      e.printStackTrace();
    }
  }

  private static String env(String name, String otherwise) {
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? otherwise : value;
  }

  /** Connects with one more property, given as name=value, or with none. */
  static Connection connect(String property) throws SQLException {
    Properties properties = new Properties();
    properties.setProperty("ApplicationName", "compat_pgjdbc");
    properties.setProperty("options", "-c search_path=" + SCHEMA + " -c geqo=off");
    if (!property.isEmpty()) {
      String[] pair = property.split("=", 2);
      properties.setProperty(pair[0], pair[1]);
    }
    return connect(properties, env("PGDATABASE", "postgres"));
  }

  private static Connection connect(Properties properties, String database) throws SQLException {
    properties.setProperty("user", env("PGUSER", "postgres"));
    properties.setProperty("password", env("PGPASSWORD", ""));
    properties.setProperty("sslmode", env("PGSSLMODE", "disable"));
    String host = env("PGHOST", "localhost");
    String url = "jdbc:postgresql://" + (host.contains(":") ? "[" + host + "]" : host) + ":" + env("PGPORT", "5432") + "/" + database;
    return DriverManager.getConnection(url, properties);
  }

  static void admin(String... statements) throws SQLException {
    try (Connection conn = connect(new Properties(), env("PGDATABASE", "postgres")); Statement statement = conn.createStatement()) {
      for (String sql : statements) {
        statement.execute(sql);
      }
    }
  }

  static synchronized void check(String name, Object seen) {
    System.out.println(("- " + name + ": " + seen).replace("\n", "\\n"));
  }

  /** What a program can learn from an error. */
  static String failure(SQLException e) {
    ServerErrorMessage m = e instanceof PSQLException p ? p.getServerErrorMessage() : null;
    if (m == null) {
      return e.getClass().getSimpleName() + " " + e.getSQLState();
    }
    return String.join("|", m.getSeverity(), m.getSQLState(), m.getMessage(), "detail=" + m.getDetail(), "hint=" + m.getHint(),
        "position=" + m.getPosition(), "at=" + m.getTable() + "." + m.getColumn() + "." + m.getConstraint(), m.getRoutine());
  }

  private static String rows(ResultSet rows) throws SQLException {
    ResultSetMetaData meta = rows.getMetaData();
    StringBuilder text = new StringBuilder();
    for (int n = 1; n <= meta.getColumnCount(); n++) {
      text.append(meta.getColumnLabel(n)).append(':').append(meta.getColumnTypeName(n)).append(' ');
    }
    while (rows.next()) {
      List<String> row = new ArrayList<>();
      for (int n = 1; n <= meta.getColumnCount(); n++) {
        row.add(rows.getString(n));
      }
      text.append(row);
    }
    return text.toString();
  }

  /** Executes and reports every result, the notices, and the transaction state. */
  static void query(Connection conn, String name, String sql, Object... values) throws SQLException {
    TEXTS.add(sql);
    try (PreparedStatement statement = conn.prepareStatement(sql)) {
      execute(conn, name, statement, values);
    } catch (SQLException e) {
      check(name, failure(e) + " " + state(conn));
    }
  }

  static void execute(Connection conn, String name, PreparedStatement statement, Object... values) throws SQLException {
    try {
      for (int n = 0; n < values.length; n++) {
        statement.setObject(n + 1, values[n]);
      }
      boolean isRows = statement.execute();
      for (; isRows || statement.getUpdateCount() != -1; isRows = statement.getMoreResults()) {
        check(name, (isRows ? rows(statement.getResultSet()) : statement.getUpdateCount() + " rows") + " " + state(conn));
      }
      for (SQLWarning w = statement.getWarnings(); w != null; w = w.getNextWarning()) {
        check(name + "/notice", w.getSQLState() + " " + w.getMessage());
      }
    } catch (SQLException e) {
      check(name, failure(e) + " " + state(conn));
    }
  }

  private static Object state(Connection conn) throws SQLException {
    return conn.unwrap(BaseConnection.class).getTransactionState();
  }

  private static void startup(String name, Connection conn) throws SQLException {
    new TreeMap<>(conn.unwrap(PGConnection.class).getParameterStatuses())
        .forEach((parameter, value) -> check(name + "/parameter " + parameter, value));
    query(conn, name + "/options", "select current_setting('search_path'), current_setting('geqo'), current_setting('extra_float_digits')");
    check(name + "/version", conn.getMetaData().getDatabaseProductVersion() + " read only " + conn.isReadOnly() + " valid " + conn.isValid(5));
    try (Connection nowhere = connect(new Properties(), "compat_no_such_database")) {
      check(name + "/no such database", "connected, valid " + nowhere.isValid(5));
    } catch (SQLException e) {
      check(name + "/no such database", failure(e));
    }
  }

  static void queries(String name, Connection conn) throws SQLException {
    OffsetDateTime when = OffsetDateTime.parse("2024-02-29T12:34:56.789Z");
    String types = "select ?::int4 i, ?::int8 b, ?::text t, ?::bool o, ?::float8 f, ?::bytea y, ?::timestamptz w, ?::int4[] a, ?::text n";
    try (PreparedStatement statement = conn.prepareStatement(types)) {
      for (int n = 0; n < 7; n++) { // past the default threshold of five
        execute(conn, name + "/types", statement, 42 + n, 1L << 40, "héllo", true, 1.5, new byte[] {0, 1, -1}, when,
            conn.createArrayOf("int4", new Object[] {1, 2, 3}), null);
      }
    }
    query(conn, name + "/literals", "select null::int, array[1,null,3], '{\"b\": [1, null]}'::jsonb, 12.340::numeric, '2024-02-29'::date, '1 day'::interval");
    query(conn, name + "/several", "select 1 as a; create table if not exists m (id int primary key, v text); select 'x' as b where false");
    query(conn, name + "/several with parameters", "insert into m values (?, ?); select count(*) from m", 1, "one");
    query(conn, name + "/several, one fails", "insert into m values (2, 'two'); select 1 / 0; insert into m values (3, 'three')");
    query(conn, name + "/notice", "create table if not exists m (id int)");
    query(conn, name + "/empty", "");
    query(conn, name + "/returning", "insert into m values (?, ?) returning id, v", 9, null);
    query(conn, name + "/syntax", "selec 1");
    query(conn, name + "/duplicate", "insert into m values (?, ?)", 9, "again");
    query(conn, name + "/nowhere", "select * from nowhere where id = ?", 1);
    try (PreparedStatement divide = conn.prepareStatement("select 10 / ? as q")) {
      for (int n : new int[] {1, 2, 0, 5, 0, 10}) {
        execute(conn, name + "/divide", divide, n);
      }
    }
    try (PreparedStatement star = conn.prepareStatement("select * from m where id = ?")) {
      for (int n = 0; n < 6; n++) {
        execute(conn, name + "/star", star, 1);
      }
      query(conn, name + "/alter", "alter table m add x int default 7");
      execute(conn, name + "/star after alter", star, 1);
      execute(conn, name + "/star after alter", star, 1);
    }
    query(conn, name + "/drop", "drop table m");
  }

  static void batches(String name, Connection conn) throws SQLException {
    query(conn, name + "/create", "create table batch (id int primary key, v text)");
    batch(conn, name + "/good", 0, 1000, -1);
    batch(conn, name + "/error in the middle", 2000, 300, 150);
    query(conn, name + "/after", "select count(*), sum(id) from batch");
    conn.setAutoCommit(false);
    batch(conn, name + "/in a transaction", 4000, 100, -1);
    batch(conn, name + "/in a transaction, error", 5000, 100, 50);
    conn.rollback();
    conn.setAutoCommit(true);
    query(conn, name + "/after", "select count(*), sum(id) from batch");
    query(conn, name + "/drop", "drop table batch");
  }

  /** Inserts ids from first on in one batch; the one at duplicate is an id that is there already. */
  private static void batch(Connection conn, String name, int first, int count, int duplicate) throws SQLException {
    try (PreparedStatement statement = conn.prepareStatement("insert into batch values (?, ?)")) {
      for (int n = 0; n < count; n++) {
        statement.setInt(1, n == duplicate ? 1 : first + n);
        statement.setString(2, "value " + n);
        statement.addBatch();
      }
      check(name, Arrays.hashCode(statement.executeBatch()) + " " + state(conn));
    } catch (BatchUpdateException e) {
      SQLException cause = e.getNextException();
      check(name, Arrays.hashCode(e.getUpdateCounts()) + " " + failure(cause == null ? e : cause) + " " + state(conn));
    }
  }

  private static void transactions(String name, Connection conn) throws SQLException {
    query(conn, name + "/create", "create table tx (n int)");
    conn.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
    conn.setAutoCommit(false);
    query(conn, name + "/isolation", "show transaction_isolation");
    query(conn, name + "/insert", "insert into tx values (?)", 1);
    Savepoint savepoint = conn.setSavepoint("s");
    query(conn, name + "/error", "select 1 / 0");
    query(conn, name + "/refused", "select 1");
    conn.rollback(savepoint);
    query(conn, name + "/insert", "insert into tx values (?)", 2);
    conn.releaseSavepoint(savepoint);
    conn.commit();
    query(conn, name + "/insert", "insert into tx values (3)");
    query(conn, name + "/error", "select * from nowhere");
    try {
      conn.commit();
      check(name + "/commit", "committed");
    } catch (SQLException e) {
      check(name + "/commit", failure(e) + " " + state(conn));
    }
    conn.setReadOnly(true);
    query(conn, name + "/read only", "insert into tx values (4)");
    conn.rollback();
    conn.setReadOnly(false);
    query(conn, name + "/what stayed", "select array_agg(n) from tx");
    conn.rollback();
  }

  /** With autosave the driver sets a savepoint before each statement, and goes back to it after an error. */
  private static void autosave(String name, Connection conn) throws SQLException {
    conn.setAutoCommit(false);
    query(conn, name + "/create", "create table saved (n int)");
    for (int n : new int[] {1, 2, 0, 5}) {
      query(conn, name + "/insert", "insert into saved values (10 / ?)", n);
    }
    conn.commit();
    query(conn, name + "/what stayed", "select array_agg(n) from saved");
    conn.commit();
  }

  private static void cursors(String name, Connection conn) throws SQLException {
    conn.setAutoCommit(false);
    try (PreparedStatement statement = conn.prepareStatement("select n from generate_series(1, ?) n");
        Statement other = conn.createStatement()) {
      statement.setFetchSize(70);
      statement.setInt(1, 1000);
      long sum = 0;
      try (ResultSet rows = statement.executeQuery()) {
        while (rows.next()) {
          sum += rows.getInt(1);
          if (rows.getInt(1) % 100 == 0) {
            other.execute("select 'between fetches'");
          }
        }
      }
      check(name + "/sum", sum);
      statement.setInt(1, 1000000);
      try (ResultSet rows = statement.executeQuery()) {
        check(name + "/first", rows.next() + " " + rows.getInt(1));
      }
    }
    try (PreparedStatement statement = conn.prepareStatement("select 10 / (5 - n) from generate_series(1, 9) n")) {
      statement.setFetchSize(2);
      try (ResultSet rows = statement.executeQuery()) {
        while (rows.next()) {
          check(name + "/row", rows.getInt(1));
        }
      } catch (SQLException e) {
        check(name + "/error", failure(e) + " " + state(conn));
      }
    }
    conn.rollback();
    query(conn, name + "/usable", "select 'after the cursors'");
    conn.commit();
  }

  private static void copyIn(Connection conn, String name, String sql, String data) throws Exception {
    CopyManager copy = conn.unwrap(PGConnection.class).getCopyAPI();
    try {
      check(name, copy.copyIn(sql, new ByteArrayInputStream(data.getBytes(StandardCharsets.UTF_8))) + " " + state(conn));
    } catch (SQLException e) {
      check(name, failure(e) + " " + state(conn));
    }
  }

  private static void copying(String name, Connection conn) throws Exception {
    query(conn, name + "/create", "create table c (id int primary key, v text)");
    StringBuilder data = new StringBuilder();
    for (int n = 0; n < 5000; n++) {
      data.append(n).append("\trow ").append(n).append('\n');
    }
    copyIn(conn, name + "/in", "copy c from stdin", data.toString());
    copyIn(conn, name + "/duplicate", "copy c from stdin", "6000\tnew\n1\told\n");
    copyIn(conn, name + "/malformed", "copy c from stdin", "7000\tnew\nx\ty\n");
    copyIn(conn, name + "/no table", "copy nowhere from stdin", "1\n");
    CopyManager copy = conn.unwrap(PGConnection.class).getCopyAPI();
    for (String sql :
        List.of("copy (select * from c where id % 1000 = 0 order by id) to stdout (format csv)",
            "copy (select 10 / (5 - n) from generate_series(1, 9) n) to stdout", "copy nowhere to stdout")) {
      ByteArrayOutputStream out = new ByteArrayOutputStream();
      try {
        check(name + "/out", copy.copyOut(sql, out) + " " + out);
      } catch (SQLException e) {
        check(name + "/out fails", out + " " + failure(e) + " " + state(conn));
      }
    }
    var canceled = copy.copyIn("copy c from stdin");
    byte[] row = "8000\tnever\n".getBytes(StandardCharsets.UTF_8);
    canceled.writeToCopy(row, 0, row.length);
    canceled.cancelCopy();
    query(conn, name + "/after errors", "select count(*) from c");
  }

  private static void large(String name, Connection conn) throws Exception {
    query(conn, name + "/1 MiB parameter", "select length(?), md5(?)", "0123456789abcdef".repeat(1 << 16), "0123456789abcdef".repeat(1 << 16));
    MessageDigest hash = MessageDigest.getInstance("SHA-256");
    int count = 0;
    try (PreparedStatement statement = conn.prepareStatement("select repeat(chr(97 + n % 26), 1000) from generate_series(1, ?) n")) {
      statement.setInt(1, 5000);
      try (ResultSet rows = statement.executeQuery()) {
        for (; rows.next(); count++) {
          hash.update(rows.getBytes(1));
        }
      }
    }
    check(name + "/5 MB of rows", count + " " + HexFormat.of().formatHex(hash.digest()));
  }

  private static void session(String name, Connection conn) throws SQLException {
    query(conn, name + "/set", "set intervalstyle = 'iso_8601'");
    check(name + "/parameter", conn.unwrap(PGConnection.class).getParameterStatus("IntervalStyle"));
    query(conn, name + "/show", "select '1 day 02:03'::interval::text");
    conn.setSchema("pg_catalog");
    check(name + "/schema", conn.getSchema());
    conn.setClientInfo("ApplicationName", "compat_renamed");
    query(conn, name + "/application name", "show application_name");
    query(conn, name + "/temp", "create temp table mine as select 1 as n");
    query(conn, name + "/temp", "select * from mine");
    query(conn, name + "/lock", "select pg_advisory_lock(?)", LOCK);
    try (Connection other = connect("")) {
      query(other, name + "/other", "select current_setting('intervalstyle'), current_setting('search_path'), current_setting('application_name')");
      query(other, name + "/other", "select * from mine");
      query(other, name + "/other", "select pg_try_advisory_lock(?)", LOCK);
    }
    query(conn, name + "/unlock", "select pg_advisory_unlock(?)", LOCK);
    query(conn, name + "/timeout", "set statement_timeout = 50");
    query(conn, name + "/timed out", "select pg_sleep(20)");
    query(conn, name + "/discard", "discard all");
    query(conn, name + "/gone", "select * from mine");
    query(conn, name + "/show", "select current_setting('intervalstyle'), current_setting('search_path'), current_setting('statement_timeout')");
  }

  private static void cancel(String name, Connection conn) throws Exception {
    String sleep = "select pg_sleep(50) /* compat_pgjdbc */";
    ExecutorService executor = Executors.newSingleThreadExecutor();
    for (int n = 0; n < 2; n++) {
      try (Statement statement = conn.createStatement()) {
        Future<Void> canceled = executor.submit(() -> cancelWhenRunning(statement, sleep));
        try {
          statement.execute(sleep);
          check(name + "/canceled", "not canceled");
        } catch (SQLException e) {
          check(name + "/canceled", failure(e));
        }
        canceled.get();
      }
      query(conn, name + "/usable", "select 'still here'");
    }
    executor.shutdown();
    try (Statement statement = conn.createStatement()) {
      statement.setQueryTimeout(1);
      statement.execute(sleep);
    } catch (SQLException e) {
      check(name + "/query timeout", failure(e));
    }
    query(conn, name + "/usable", "select 'still here'");
  }

  private static Void cancelWhenRunning(Statement statement, String sql) throws SQLException {
    try (Connection other = connect("");
        PreparedStatement running =
            other.prepareStatement("select count(*) from pg_stat_activity where query = ? and wait_event = 'PgSleep'")) {
      running.setString(1, sql);
      for (long count = 0; count == 0; ) {
        try (ResultSet rows = running.executeQuery()) {
          rows.next();
          count = rows.getLong(1);
        }
      }
    }
    statement.cancel();
    return null;
  }

  private static void listening(String name, Connection conn) throws SQLException {
    query(conn, name + "/listen", "listen compat_pgjdbc");
    for (String payload : List.of("first", "second")) {
      query(conn, name + "/notify", "select pg_notify('compat_pgjdbc', ?)", payload);
      notifications(name, conn);
    }
    conn.setAutoCommit(false);
    query(conn, name + "/notify", "notify compat_pgjdbc, 'third'");
    conn.commit();
    conn.setAutoCommit(true);
    notifications(name, conn);
    query(conn, name + "/unlisten", "unlisten *");
  }

  private static void notifications(String name, Connection conn) throws SQLException {
    PGNotification[] heard = conn.unwrap(PGConnection.class).getNotifications(5000);
    for (PGNotification n : heard == null ? new PGNotification[0] : heard) {
      check(name + "/notification", n.getName() + " " + n.getParameter());
    }
  }

  private static void concurrent(String name, Connection conn) throws Exception {
    query(conn, name + "/create", "create table counter as select id, 0 as n from generate_series(0, 20) id");
    ExecutorService executor = Executors.newFixedThreadPool(WORKERS);
    List<Callable<Void>> work = new ArrayList<>();
    for (int n = 1; n <= WORKERS; n++) {
      int worker = n;
      work.add(() -> count(worker));
    }
    for (Future<Void> done : executor.invokeAll(work)) {
      done.get();
    }
    executor.shutdown();
    query(conn, name + "/shared", "select n from counter where id = 0");
    query(conn, name + "/own", "select min(n), max(n), count(*) from counter where id > 0");
  }

  /** Adds one to the worker's own row and to the shared one in each transaction, some of which are undone first. */
  private static Void count(int worker) throws SQLException {
    try (Connection conn = connect("");
        PreparedStatement add = conn.prepareStatement("update counter set n = n + 1 where id in (0, ?)")) {
      conn.setAutoCommit(false);
      add.setInt(1, worker);
      for (int n = 0; n < TRANSACTIONS; n++) {
        if (n % 5 == 0) {
          add.executeUpdate();
          conn.rollback();
        }
        add.executeUpdate();
        conn.commit();
      }
    }
    return null;
  }
}
