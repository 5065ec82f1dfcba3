{{- /* What `install` and `uninstall` have in common; the mounts come last, for more. */ -}}
{{- define "cloister.node.installer" -}}
image: {{ .image }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
env:
  - name: NODE_NAME
    valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
resources:
  requests: {cpu: 10m, memory: 32Mi}
  limits: {memory: 128Mi}
# Files of root's, containerd's socket and systemd's bus: what is written there is root on the node all the same.
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  seccompProfile: {type: RuntimeDefault}
  seLinuxOptions: {type: spc_t}
  capabilities: {drop: [ALL], add: [CHOWN, DAC_OVERRIDE, FOWNER]}
volumeMounts:
  - {name: etc, mountPath: /etc/cloister}
  - {name: run, mountPath: /run/cloister}
  - {name: folder, mountPath: {{ .root.Values.node.folder }}}
  - {name: config, mountPath: {{ dir .place.config }}}
  - {name: containerd, mountPath: {{ dir .place.socket }}}
  - {name: tmp, mountPath: /tmp}
  {{- if .systemd }}
  - {name: bus, mountPath: /run/dbus}
  {{- end }}
{{- end }}
