module github.com/pgmoor/pgmoor/internal/scram/oracle

go 1.26.0

require (
	github.com/pgmoor/pgmoor v0.0.0
	github.com/stretchr/testify v1.12.1
	github.com/xdg-go/scram v1.4.0
)

require (
	github.com/xdg-go/stringprep v1.0.4 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/text v0.41.0 // indirect
)

replace github.com/pgmoor/pgmoor => ../../..
