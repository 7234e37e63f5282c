{{/* The name of a part: `gateway` of the release `shop` is `shop-overlane-gateway`, of the release `overlane` it is `overlane-gateway`. */}}
{{- define "overlane.name" -}}
{{- $release := .root.Release.Name -}}
{{- $name := ternary $release (printf "%s-overlane" $release) (contains "overlane" $release) -}}
{{- printf "%s-%s" $name .part | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "overlane.selector" -}}
app.kubernetes.io/name: overlane
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "overlane.labels" -}}
{{ include "overlane.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: overlane
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "overlane.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "overlane.serviceAccount" -}}
{{- $own := include "overlane.name" (dict "root" .root "part" .part) -}}
{{- ternary $own "default" .root.Values.serviceAccount.create | default .root.Values.serviceAccount.name -}}
{{- end -}}

{{/* Whether the blueprints are in the chart's own ConfigMap. */}}
{{- define "overlane.ownStore" -}}{{ if not .Values.store }}true{{ end }}{{- end -}}

{{- define "overlane.configMap" -}}{{ include "overlane.name" (dict "root" . "part" "environments") }}{{- end -}}

{{- define "overlane.store" -}}{{ .Values.store | default "/etc/overlane/environments" }}{{- end -}}

{{/* Whether the store is in the cluster's own API, so that pods need a token for it. */}}
{{- define "overlane.asksKubernetes" -}}{{ if hasPrefix "kubernetes:" .Values.store }}true{{ end }}{{- end -}}

{{- define "overlane.storeNamespace" -}}{{ trimPrefix "kubernetes:" .Values.store | default .Release.Namespace }}{{- end -}}

{{- define "overlane.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "overlane.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* A sidecar is in the pod of another, who may run as root: it says of itself that it does not. */}}
{{- define "overlane.sidecarSecurity" -}}
{{ include "overlane.containerSecurity" . }}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Liveness depends on nothing but the process: neither on the store nor on upstreams. */}}
{{- define "overlane.probes" -}}
startupProbe: {httpGet: {path: /readyz, port: probes}, periodSeconds: 1, failureThreshold: 60}
readinessProbe: {httpGet: {path: /readyz, port: probes}, periodSeconds: 5}
livenessProbe: {httpGet: {path: /healthz, port: probes}, periodSeconds: 10}
{{- end -}}

{{/*
The sidecar before a service, for `initContainers` of its pod: a native sidecar, which starts before the application and ends after it.

    {{ include "overlane.sidecar" (dict "root" $overlane "service" "payments-api" "port" 8080 "app" 3000) | nindent 8 }}

`root` is the scope of this chart (`.Subcharts.overlane` of a chart that depends on it), `port` the Service's target port, and `app` where the application
listens. With `environment` it is the sidecar of an overlay's own instance. `overlane inject` gives the same to manifests without a chart.
*/}}
{{- define "overlane.sidecar" -}}
- name: overlane
  image: {{ include "overlane.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  restartPolicy: Always
  args:
    - run
    - {{ printf "--store=%s" (include "overlane.store" .root) | quote }}
    {{- with .root.Values.baseline }}
    - {{ printf "--baseline=%s" . | quote }}
    {{- end }}
    {{- with .environment }}
    - {{ printf "--environment=%s" . | quote }}
    {{- end }}
    - {{ printf "--service=%s" .service | quote }}
    - {{ printf "--inbound=0.0.0.0:%v" .port | quote }}
    - {{ printf "--app=http://127.0.0.1:%v" .app | quote }}
    - --outbound=127.0.0.1:7483
    - --probes=0.0.0.0:7482
  {{- with .root.Values.sidecar.tokenSecret }}
  env:
    - {name: OVERLANE_SERVER_TOKEN, valueFrom: {secretKeyRef: {name: {{ . }}, key: token}}}
  {{- end }}
  ports:
    - {name: http, containerPort: {{ .port }}}
    - {name: probes, containerPort: 7482}
  {{- include "overlane.probes" . | nindent 2 }}
  resources: {{- toYaml .root.Values.sidecar.resources | nindent 4 }}
  securityContext: {{- include "overlane.sidecarSecurity" . | nindent 4 }}
  {{- if include "overlane.ownStore" .root }}
  volumeMounts:
    - {name: overlane-environments, mountPath: /etc/overlane/environments, readOnly: true}
  {{- end }}
{{- end -}}

{{/* The volumes that the sidecar needs, for the pod of its service. */}}
{{- define "overlane.sidecarVolumes" -}}
{{- if include "overlane.ownStore" .root -}}
- name: overlane-environments
  configMap: {name: {{ include "overlane.configMap" .root }}}
{{- end -}}
{{- end -}}

{{/* What the application needs for its calls to keep their key. */}}
{{- define "overlane.applicationEnv" -}}
- {name: HTTP_PROXY, value: "http://127.0.0.1:7483"}
- {name: http_proxy, value: "http://127.0.0.1:7483"}
- {name: NO_PROXY, value: "127.0.0.1,localhost"}
- {name: no_proxy, value: "127.0.0.1,localhost"}
{{- end -}}
