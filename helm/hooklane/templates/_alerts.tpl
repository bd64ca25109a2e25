{{/*
files/alerts.yaml for this release: its series alone, and with what prometheusRule.alerts says otherwise. Every
expression there ends in its threshold. How many replicas there should be is known here.
*/}}
{{- define "hooklane.alerts" -}}
{{- $selector := printf "job=%q,namespace=%q" (include "hooklane.fullname" .) .Release.Namespace -}}
{{- $file := .Files.Get "files/alerts.yaml" | fromYaml -}}
{{- $overrides := .Values.prometheusRule.alerts -}}
{{- $known := list -}}
{{- $groups := list -}}
{{- range $group := $file.groups -}}
  {{- $rules := list -}}
  {{- range $rule := $group.rules -}}
    {{- $known = append $known $rule.alert -}}
    {{- $override := get $overrides $rule.alert | default dict -}}
    {{- $expr := $rule.expr | replace `job="hooklane"` $selector | trim -}}
    {{- $threshold := $override.threshold -}}
    {{- if and (kindIs "invalid" $threshold) (eq $rule.alert "HooklaneReplicaDown") -}}
      {{- $threshold = include "hooklane.replicasMin" $ -}}
    {{- end -}}
    {{- if not (kindIs "invalid" $threshold) -}}
      {{- $expr = regexReplaceAll `[0-9.]+$` $expr (toString $threshold) -}}
    {{- end -}}
    {{- $labels := merge (dict) $rule.labels -}}
    {{- with $override.severity -}}{{- $labels = merge (dict "severity" .) $labels -}}{{- end -}}
    {{- $annotations := merge (dict) $rule.annotations -}}
    {{- with $override.runbookUrl -}}{{- $annotations = merge (dict "runbook_url" .) $annotations -}}{{- end -}}
    {{- if ne $override.enabled false -}}
      {{- $made := dict "alert" $rule.alert "expr" $expr "for" ($override.for | default $rule.for) "labels" $labels "annotations" $annotations -}}
      {{- $rules = append $rules $made -}}
    {{- end -}}
  {{- end -}}
  {{- if $rules -}}{{- $groups = append $groups (dict "name" $group.name "rules" $rules) -}}{{- end -}}
{{- end -}}
{{- range $name, $_ := $overrides -}}
  {{- if not (has $name $known) -}}
    {{- fail (printf "prometheusRule.alerts.%s is no alert; there are %s" $name (join ", " $known)) -}}
  {{- end -}}
{{- end -}}
{{- dict "groups" $groups | toYaml -}}
{{- end }}

{{/* How many replicas there are at least, when all is well. */}}
{{- define "hooklane.replicasMin" -}}
{{- $count := 0 -}}
{{- range include "hooklane.components" . | fromJsonArray -}}
  {{- $values := get $.Values . -}}
  {{- $count = add $count (ternary $values.autoscaling.minReplicas $values.replicas $values.autoscaling.enabled) -}}
{{- end -}}
{{- $count -}}
{{- end }}
