{{- define "cloister.labels" -}}
app.kubernetes.io/name: cloister
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* Labels of a component's pods: (dict "root" . "component" "node"). */ -}}
{{- define "cloister.selector" -}}
app.kubernetes.io/name: cloister
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* Name, namespace and labels of an object of a component: (dict "root" . "component" "node"). */ -}}
{{- define "cloister.metadata" -}}
name: {{ .root.Release.Name }}-{{ .component }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "cloister.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "cloister.image" -}}
{{ .root.Values.image.repository }}/{{ .image.name }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "cloister.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Where a pod may run: values of its component. */ -}}
{{- define "cloister.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "cloister.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* The Secret with the nodes' certificates. */ -}}
{{- define "cloister.tlsSecret" -}}
{{ .Values.distribution.tlsSecret | default (printf "%s-node-tls" .Release.Name) }}
{{- end }}

{{- /* Where each flavour has its containerd. */ -}}
{{- define "cloister.containerd" -}}
{{- $rancher := "/var/lib/rancher/%s/agent/etc/containerd/config.toml" -}}
{{- $socket := "/run/k3s/containerd/containerd.sock" -}}
{{- $flavors := dict
  "plain" (dict "config" "/etc/containerd/config.toml" "socket" "/run/containerd/containerd.sock")
  "k3s" (dict "config" (printf $rancher "k3s") "socket" $socket)
  "rke2" (dict "config" (printf $rancher "rke2") "socket" $socket) -}}
{{- $flavor := get $flavors .Values.containerd.flavor -}}
{{- toYaml (dict
  "config" (.Values.containerd.config | default $flavor.config)
  "socket" (.Values.containerd.socket | default $flavor.socket)) -}}
{{- end }}
