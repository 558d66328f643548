module github.com/pgmoor/pgmoor/internal/sqlscan/oracle

go 1.26.0

require (
	github.com/pganalyze/pg_query_go/v6 v6.2.5
	github.com/pgmoor/pgmoor v0.0.0
	github.com/stretchr/testify v1.12.1
	google.golang.org/protobuf v1.33.0
)

require go.yaml.in/yaml/v3 v3.0.5 // indirect

replace github.com/pgmoor/pgmoor => ../../..
