module github.com/pgmoor/pgmoor/bench

go 1.26.0

replace github.com/pgmoor/pgmoor => ../

require github.com/stretchr/testify v1.12.1

require go.yaml.in/yaml/v3 v3.0.5 // indirect
