// Command apigen makes the generated part of the API from api/hanok/v1: Go
// messages, Connect services and the OpenAPI description. `make generate` runs
// it; its test fails when the generated files are not current.
package main
