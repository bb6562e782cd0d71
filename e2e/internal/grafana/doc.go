// Package grafana reads the dashboards of manifests/grafana as Grafana would, and holds
// them against what kekd measures, records and documents: docs/metrics.md, the rules and
// alerts of manifests/prometheus, and the pages that their links lead to.
//
// It needs neither Grafana nor Prometheus: the schema is Grafana's own, from its
// foundation SDK, and the queries are read by Prometheus' own parser. What a query
// answers is e2e/dashboards' to see.
package grafana
