import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.List;

/** pgjdbc's program of prepared statements, named from the first or the fifth use on; it makes no other state of a session. */
public final class Statements {
  /** A text that both clients prepare, and its values. */
  private record Shared(String sql, Object... values) {}

  // They are not a multiple of three, so that with two clients and three server connections lent in turn each of them meets each
  // connection.
  private static final List<Shared> SHARED =
      List.of(new Shared("select ?::int4 + 1 as n, ?::text as t", 1, "héllo"),
          new Shared("select ?::timestamptz as w, ?::bytea as y, ?::float8 as f", OffsetDateTime.parse("2024-02-29T12:34:56Z"),
              new byte[] {0, 1, -1}, 1.5),
          new Shared("select ?::int8 as a, ?::bool as o, ?::text as nothing", 1L << 40, true, null),
          new Shared("select count(*), max(v) from turns where id > ?", 0));

  private Statements() {}

  public static void main(String[] args) throws Exception {
    List<Connection> connections = warm();
    admin(connections.get(0), "drop schema if exists " + Smoke.SCHEMA + " cascade");
    admin(connections.get(0), "create schema " + Smoke.SCHEMA);
    for (String way : List.of("prepareThreshold=1", "prepareThreshold=5", "preferQueryMode=extendedCacheEverything")) {
      Smoke.part("queries " + way, way, Smoke::queries);
      Smoke.part("batches " + way, way, Smoke::batches);
      Smoke.part("turns " + way, way, (name, conn) -> turns(name, conn, way));
      Smoke.part("again " + way, way, (name, conn) -> again(name, conn, way));
    }
    Smoke.part("small cache", "preparedStatementCacheQueries=2", Statements::smallCache);
    admin(connections.get(0), "drop schema " + Smoke.SCHEMA + " cascade");
    for (Connection conn : connections) {
      conn.close();
    }
    Smoke.check("texts", Smoke.TEXTS.size());
    if (Smoke.failed) {
      System.exit(1);
    }
    System.out.println("done");
  }

  /** Has three connections open at once, so that what may stand between has three, too. */
  private static List<Connection> warm() throws SQLException {
    List<Connection> connections = new ArrayList<>();
    for (int n = 0; n < 3; n++) {
      Connection conn = Smoke.connect("");
      admin(conn, "begin");
      connections.add(conn);
    }
    for (Connection conn : connections) {
      admin(conn, "rollback");
    }
    return connections;
  }

  private static void admin(Connection conn, String sql) throws SQLException {
    try (var statement = conn.createStatement()) {
      statement.execute(sql);
    }
  }

  /** Two clients use the same statements; pgjdbc gives them the names S_1, S_2 and so on for both. */
  private static void turns(String name, Connection a, String way) throws SQLException {
    try (Connection b = Smoke.connect(way)) {
      Smoke.query(a, name + "/create", "create table turns (id int primary key, v text)");
      for (int n = 0; n < 8; n++) { // pgjdbc's threshold and PostgreSQL's for a generic plan are five each
        for (Shared shared : SHARED) {
          Smoke.query(a, name + "/a", shared.sql, shared.values);
          Smoke.query(b, name + "/b", shared.sql, shared.values);
        }
        Smoke.query(a, name + "/a inserts", "insert into turns values (?, ?)", n, "a" + n);
        Smoke.query(b, name + "/b inserts it again", "insert into turns values (?, ?)", n, "b");
        Smoke.query(a, name + "/a divides", "select 6 / ?", n - 3);
      }
      inTransaction(name, a);
      altered(name, a, b);
      Smoke.query(a, name + "/drop", "drop table turns");
    }
  }

  /** A client uses statements in a transaction, some for the first time, and after an error there. */
  private static void inTransaction(String name, Connection conn) throws SQLException {
    Shared known = SHARED.get(0);
    conn.setAutoCommit(false);
    Smoke.query(conn, name + "/known", known.sql, known.values);
    Smoke.query(conn, name + "/new", "select ?::int4 * 2", 4);
    Savepoint savepoint = conn.setSavepoint("s");
    Smoke.query(conn, name + "/error", "select 6 / ?", 0);
    Smoke.query(conn, name + "/refused", known.sql, known.values);
    Smoke.query(conn, name + "/new, refused", "select ?::int4 * 3", 4);
    conn.rollback(savepoint);
    Smoke.query(conn, name + "/known", known.sql, known.values);
    Smoke.query(conn, name + "/new again", "select ?::int4 * 3", 4);
    conn.rollback();
    conn.setAutoCommit(true);
    for (int n = 0; n < 4; n++) {
      Smoke.query(conn, name + "/kept", "select ?::int4 * 2", 4);
      Smoke.query(conn, name + "/kept", "select ?::int4 * 3", 4);
    }
  }

  /** Both clients use a statement whose table has got another column; pgjdbc prepares it anew when the server refuses it. */
  private static void altered(String name, Connection a, Connection b) throws SQLException {
    String star = "select * from turns where id < ? order by id";
    for (int n = 0; n < 6; n++) {
      Smoke.query(a, name + "/star", star, 2);
      Smoke.query(b, name + "/star", star, 2);
    }
    Smoke.query(a, name + "/alter", "alter table turns add x int default 7");
    for (int n = 0; n < 4; n++) {
      Smoke.query(a, name + "/star after alter", star, 2);
      Smoke.query(b, name + "/star after alter", star, 2);
    }
  }

  /** Statements are dropped by SQL, and prepared again; pgjdbc sees that and prepares its own anew. */
  private static void again(String name, Connection a, String way) throws SQLException {
    try (Connection b = Smoke.connect(way)) {
      for (String drop : List.of("deallocate compat_again", "deallocate all", "discard all", "select 1")) {
        Smoke.query(a, name + "/sql prepare", "prepare compat_again(int) as select $1 * 2 as a");
        Smoke.query(b, name + "/sql prepare", "prepare compat_again(text) as select $1 || '!' as b");
        for (int n = 0; n < 7; n++) {
          Smoke.query(a, name + "/a", "select ?::int4 + 3 as a", n);
          Smoke.query(b, name + "/b", "select ?::text || 'b' as b", "x");
          Smoke.query(a, name + "/sql a", "execute compat_again(7)");
          Smoke.query(b, name + "/sql b", "execute compat_again('x')");
        }
        Smoke.query(a, name + "/twice", "prepare compat_again as select 1");
        Smoke.query(a, name + "/view", "select name, statement, parameter_types::text, from_sql from pg_prepared_statements order by name");
        Smoke.query(a, name + "/" + drop, drop);
        Smoke.query(a, name + "/gone or not", "execute compat_again(7)");
        Smoke.query(b, name + "/not gone", "execute compat_again('x')");
        Smoke.query(a, name + "/deallocate", "deallocate all");
        Smoke.query(b, name + "/deallocate", "deallocate all");
      }
    }
  }

  /** The driver's cache has room for two statements: the others are closed in front of the next. */
  private static void smallCache(String name, Connection conn) throws SQLException {
    for (int n = 0; n < 20; n++) {
      try (PreparedStatement statement = conn.prepareStatement("select ?::int4 + " + n % 5 + " as n")) {
        for (int use = 0; use < 7; use++) {
          Smoke.execute(conn, name, statement, use);
        }
      }
    }
  }
}
