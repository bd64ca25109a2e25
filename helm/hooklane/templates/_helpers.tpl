{{/* The name of the chart in labels. */}}
{{- define "hooklane.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* What objects are called: the release, unless it says something else. Short enough for the longest suffix. */}}
{{- define "hooklane.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* What tells the pods of this release from all others; never changes. */}}
{{- define "hooklane.selector" -}}
app.kubernetes.io/name: {{ include "hooklane.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "hooklane.labels" -}}
{{ include "hooklane.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The metadata of an object: {root, name, component, labels, annotations}. */}}
{{- define "hooklane.metadata" -}}
{{- $root := .root -}}
name: {{ .name }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "hooklane.labels" $root | nindent 2 }}
  {{- with .component }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The Deployments that there are, by component, as JSON. */}}
{{- define "hooklane.components" -}}
{{- if eq .Values.roles "together" }}["together"]{{ else }}["api","worker"]{{ end }}
{{- end }}

{{/* What a Deployment is called: {root, component}. */}}
{{- define "hooklane.componentName" -}}
{{- $fullname := include "hooklane.fullname" .root -}}
{{- if eq .component "together" }}{{ $fullname }}{{ else }}{{ printf "%s-%s" $fullname .component }}{{ end }}
{{- end }}

{{- define "hooklane.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "hooklane.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "hooklane.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}{{ else }}{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{/* The secret with the database's URL, and its key. */}}
{{- define "hooklane.databaseSecret" -}}
{{- if .Values.database.url }}{{ include "hooklane.fullname" . }}-database{{ else }}{{ .Values.database.existingSecret }}{{ end }}
{{- end }}
{{- define "hooklane.databaseKey" -}}
{{- if .Values.database.url }}uri{{ else }}{{ .Values.database.existingSecretKey }}{{ end }}
{{- end }}

{{/* The settings that have values of their own, or a place in a pod that nothing else may be. */}}
{{- define "hooklane.ownSettings" -}}
database.url: database.existingSecret or database.url
egress.proxy: extraEnv, for it may have a password (HOOKLANE_EGRESS_PROXY, or HOOKLANE_EGRESS_PROXY_FILE)
encryption.keys: encryption.existingSecret
grpc.addr: service.port
ops.addr: none, it is 9464 on every address of the pod
roles: roles
shutdown.grace: shutdown.graceSeconds
tls.cert_file: tls.existingSecret
tls.client_ca_file: tls.clientCA
tls.key_file: tls.existingSecret
{{- end }}

{{/* The settings as the program's file: keys with dots are tables to TOML, JSON's texts and lists are TOML's. */}}
{{- define "hooklane.settings" -}}
{{- $own := include "hooklane.ownSettings" . | fromYaml }}
{{- range $key, $value := .Values.settings }}
{{- with get $own $key }}
{{- fail (printf "settings.%s is set by the chart; the value for it is %s" $key .) }}
{{- end }}
{{- if kindIs "float64" $value }}
{{ $key }} = {{ int64 $value }}
{{- else }}
{{ $key }} = {{ mustToRawJson $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where the settings and the database's URL are; the migration needs no more. */}}
{{- define "hooklane.commonEnv" -}}
- name: HOOKLANE_CONFIG
  value: /etc/hooklane/hooklane.toml
- name: DATABASE_URL_FILE
  value: /run/secrets/hooklane/database/url
{{- end }}

{{- define "hooklane.commonMounts" -}}
- name: settings
  mountPath: /etc/hooklane
  readOnly: true
- name: database
  mountPath: /run/secrets/hooklane/database
  readOnly: true
{{- end }}

{{/* {root, settings, secret}: the names of the ConfigMap and the secret, which differ for the migration. */}}
{{- define "hooklane.commonVolumes" -}}
- name: settings
  configMap:
    name: {{ .settings }}
- name: database
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items:
      - key: {{ include "hooklane.databaseKey" .root }}
        path: url
{{- end }}

{{/* The security context and what else any pod of the chart has. */}}
{{- define "hooklane.podCommon" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end }}

{{- define "hooklane.containerCommon" -}}
image: {{ include "hooklane.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end }}
